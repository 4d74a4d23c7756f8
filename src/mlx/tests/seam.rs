//! Masks, prefixes and ends: what the seam promises of every engine.

use super::*;

/// Allows one token, the next one of a list; slow where it is told to be.
pub(super) struct Script {
    next: VecDeque<u32>,
    gate: Option<mpsc::Receiver<()>>,
    fails: bool,
}

impl Script {
    pub fn new(list: &[u32]) -> Script {
        Script {
            next: list.iter().copied().collect(),
            gate: None,
            fails: false,
        }
    }
}

impl MaskSource for Script {
    fn mask(&mut self) -> Result<Mask, String> {
        if let Some(gate) = &self.gate {
            let _ = gate.recv();
        }
        match self.next.pop_front() {
            Some(id) if id % 3 == 0 => Ok(Mask::Only(Arc::new([id]))),
            Some(id) if id % 3 == 1 => {
                let mut words = vec![0; 16];
                words[id as usize / 32] = 1 << (id % 32);
                Ok(Mask::Bits(words))
            }
            Some(id) => Ok(Mask::Except(
                (0..512).filter(|&other| other != id).collect(),
            )),
            None if self.fails => Err("the rules are over".into()),
            None => Ok(Mask::Any),
        }
    }

    fn accept(&mut self, _: u32) -> Result<(), String> {
        Ok(())
    }
}

#[test]
fn masks_are_kept_to_and_slow_ones_hold_up_nobody_else() -> Result<()> {
    let mlx = start(|_| ())?;
    let wanted: Vec<u32> = (0..12).map(|i| i * 37 % 512).collect();
    let masked = |gate, fails, list: &[u32]| Request {
        constraint: Some(Box::new(Script {
            gate,
            fails,
            ..Script::new(list)
        })),
        ..request(&tiny().ids[..30], 12, greedy())
    };
    let answer = collect(mlx.submit(masked(None, false, &wanted)));
    assert_eq!(answer.tokens, wanted);
    // One that has to wait for each mask, and others that come and go meanwhile.
    let (permit, gate) = mpsc::channel();
    let mut slow = mlx.submit(masked(Some(gate), false, &wanted));
    let alone = collect(mlx.submit(request(&tiny().ids[..200], 30, greedy())));
    assert_eq!(alone.tokens.len(), 30);
    for &id in &wanted {
        permit.send(())?;
        let token = slow
            .by_ref()
            .find(|event| matches!(event, Event::Token { .. }));
        assert!(
            matches!(token, Some(Event::Token { id: got, .. }) if got == id),
            "{token:?}"
        );
        let beside = collect(mlx.submit(request(&tiny().ids[..200], 30, greedy())));
        assert_eq!(beside.tokens, alone.tokens);
    }
    let last = slow.last();
    assert!(matches!(last, Some(Event::Finish { .. })), "{last:?}");
    // Rules that end before the answer does.
    let failed = collect(mlx.submit(masked(None, true, &wanted[..3])));
    assert_eq!(failed.tokens, wanted[..3]);
    assert_eq!(
        failed.failure,
        Some(Failure::Invalid("the rules are over".into()))
    );
    // A mask that allows nothing but padding.
    let mlx = start(|options| options.padding = vec![5])?;
    let failed = collect(mlx.submit(masked(None, false, &[5])));
    assert!(
        matches!(&failed.failure, Some(Failure::Broken(why)) if why.contains("allows no token")),
        "{failed:?}"
    );
    Ok(())
}

#[test]
fn prefixes_are_kept_and_change_no_answer() -> Result<()> {
    let mlx = start(|_| ())?;
    let ids = &tiny().ids;
    let ask = |len| collect(mlx.submit(request(&ids[..len], 15, greedy())));
    let (first, again) = (ask(220), ask(220));
    assert_eq!(first.end.map(|e| e.1.cached_tokens), Some(0));
    assert_eq!(again.end.map(|e| e.1.cached_tokens), Some(219));
    assert_eq!(first.tokens, again.tokens);
    // What went on from a prefix left it as it was.
    assert_eq!(ask(220).tokens, first.tokens);
    // Longer: it goes on from there. Shorter: the window can't go back.
    let longer = ask(300);
    assert_eq!(longer.end.map(|e| e.1.cached_tokens), Some(219));
    let mut shorter = mlx.submit(request(&ids[..150], 1, greedy()));
    let miss = shorter.find_map(|event| match event {
        Event::Prefill { miss, .. } => Some(miss),
        _ => None,
    });
    let miss = miss.flatten().context("all was cached")?;
    assert_eq!((miss.at, miss.reason), (149, MissReason::Window));
    // An agent's next turn: prompt and answer, up to a stop token, and more.
    let stop = Request {
        stop_ids: vec![first.tokens[9]],
        ..request(&ids[..220], 100, greedy())
    };
    let turn = collect(mlx.submit(stop));
    assert_eq!(reason(&turn), Some(FinishReason::Stop));
    let next = [&ids[..220], &turn.tokens, &ids[..10]].concat();
    let next = collect(mlx.submit(request(&next, 5, greedy())));
    assert_eq!(
        next.end.map(|e| e.1.cached_tokens),
        Some(220 + turn.tokens.len())
    );
    let stats = mlx.stats();
    assert!(
        stats.cached_tokens >= 219 * 4 && stats.finished == 7,
        "{stats:?}"
    );
    // Without a cache nothing is kept.
    let mlx = start(|options| options.cache_bytes = 0)?;
    for _ in 0..2 {
        let answer = collect(mlx.submit(request(&ids[..220], 15, greedy())));
        assert_eq!(answer.end.map(|e| e.1.cached_tokens), Some(0));
        assert_eq!(answer.tokens, first.tokens);
    }
    let anew = collect(mlx.submit(request(&ids[..300], 15, greedy())));
    assert_eq!(anew.tokens, longer.tokens);
    Ok(())
}

#[test]
fn kept_prefixes_take_no_more_memory_than_is_counted() -> Result<()> {
    let most = 32 << 20;
    let mlx = start(|options| options.cache_bytes = most)?;
    let ids = |len: u32, seed: u32| -> Vec<u32> {
        let mixed = (0..len).map(|i| (i + 1).wrapping_mul(2_654_435_761).wrapping_add(seed * 97));
        mixed.map(|id| (id >> 8) % 512).collect()
    };
    // Three long ones decode all the time; short ones leave their batch, which is some 12 MB.
    let long = |seed| mlx.submit(request(&ids(1500, seed), 100_000, greedy()));
    let mut live: Vec<_> = (0..3).map(long).collect();
    live.iter_mut().for_each(until_token);
    let before = mlx.memory().context("no answer")?.active;
    for seed in 3..19 {
        let short = Request {
            stop_ids: (0..512).collect(),
            ..request(&ids(64, seed), 5, greedy())
        };
        assert_eq!(
            reason(&collect(mlx.submit(short))),
            Some(FinishReason::Stop)
        );
    }
    live.iter_mut().for_each(until_token);
    let grown = mlx.memory().context("no answer")?.active;
    let grown = grown.saturating_sub(before);
    assert!(grown < 2 * most, "{grown} bytes for at most {most}");
    Ok(())
}

#[test]
fn prompts_are_read_in_pieces_that_are_soon_over() -> Result<()> {
    let mlx = start(|_| ())?;
    let most = if mlx.hello().gpu { 512 } else { 64 };
    let ids = [tiny().ids.as_slice(), &tiny().ids].concat();
    let mut last = 0;
    for event in mlx.submit(request(&ids, 1, greedy())) {
        if let Event::Prefill { done, .. } = event {
            // The last token runs with the answer's first.
            assert!(done - last <= most + 1, "{last} to {done}");
            last = done;
        }
    }
    assert_eq!(last, ids.len());
    Ok(())
}

#[test]
fn requests_end_as_the_seam_says() -> Result<()> {
    let mlx = start(|options| {
        (options.context, options.slots, options.max_waiting) = (200, 2, 1);
    })?;
    let ids = &tiny().ids;
    let whole = |tokens: Option<usize>| Request {
        max_tokens: tokens,
        ..request(&ids[..150], 0, greedy())
    };
    let full = collect(mlx.submit(whole(None)));
    let (reason_, usage) = full.end.context("no end")?;
    assert_eq!(
        (reason_, full.tokens.len(), usage.context_full),
        (FinishReason::Length, 50, true)
    );
    let full = collect(mlx.submit(whole(Some(50))));
    assert!(full.end.is_some_and(|(_, usage)| !usage.context_full));
    let refused = |request| collect(mlx.submit(request)).failure;
    let long = Failure::ContextLength {
        prompt: 200,
        context: 200,
    };
    assert_eq!(refused(request(&ids[..200], 1, greedy())), Some(long));
    let bad = |request| matches!(refused(request), Some(Failure::Invalid(_)));
    assert!(bad(request(&[], 1, greedy())) && bad(request(&[512], 1, greedy())));
    let hot = Sampling {
        temperature: 1e9,
        ..greedy()
    };
    assert!(bad(request(&[1], 1, hot)));
    // Two run, one waits, one is too many; who leaves makes room.
    let endless = || mlx.submit(request(&ids[..20], 170, greedy()));
    let (mut one, two, three, four) = (endless(), endless(), endless(), endless());
    assert!(matches!(
        collect(four).failure,
        Some(Failure::Busy { waiting: 1, .. })
    ));
    until_token(&mut one);
    drop(one);
    assert_eq!(reason(&collect(three)), Some(FinishReason::Length));
    assert_eq!(reason(&collect(two)), Some(FinishReason::Length));
    let stopped = request(&ids[..20], 170, greedy());
    let cancel = stopped.cancel.clone();
    let mut events = mlx.submit(stopped);
    until_token(&mut events);
    cancel.cancel();
    let last = events.last();
    assert!(
        matches!(
            last,
            Some(Event::Finish {
                reason: FinishReason::Cancelled,
                ..
            })
        ),
        "{last:?}"
    );
    let mut events = endless();
    until_token(&mut events);
    drop(mlx);
    assert_eq!(events.last(), Some(Event::Error(Failure::Stopped)));
    Ok(())
}
