//! What the prefix cache asks of a back end: sequences that share blocks, go on from snapshots on any
//! slot, and rebuild their sliding windows, give the logits of one long prefill, bit for bit.

use crate::{
    assert_same, backends,
    common::{
        fresh_seed,
        models::{Random, odd_shape, random_model},
        open_with, score, score_with, segment,
    },
};
use gossamer::{
    backend::{Backend, Batch, KV_BLOCK, Limits, LogitRows, Segment, snapshot_bytes},
    config::Config,
    gguf::Bytes,
    weights::{Format, Model},
};
use std::sync::Arc;

const LIMITS: Limits = Limits {
    slots: 5,
    kv_blocks: 64,
    batch_tokens: 160,
    snapshots: 6,
};

/// Models whose receptive field is short: windows of one position to several blocks, one layer to
/// five, one to eight query heads on a KV head.
fn models(random: &mut Random) -> Vec<Arc<Model>> {
    let shapes = [
        (1, 3, 6, 2),
        (2, 5, 4, 4),
        (13 + random.below(9), 4, 6, 2),
        (33, 3, 8, 1),
        (30 + random.below(40), 1 + random.below(3), 2, 2),
    ];
    let model = |(window, layers, heads, kv_heads)| {
        let config = Config {
            window,
            layers,
            hidden: 64,
            heads,
            kv_heads,
            head_dim: 32,
            experts: 4,
            experts_used: 2,
            expert_width: 32,
            vocab: 101,
            ..odd_shape()
        };
        let formats = [Format::Q8_0, Format::F16];
        Arc::new(random_model(random, config, &formats, &[Format::MXFP4]))
    };
    shapes.map(model).into()
}

/// A sequence on its way, and what it must give.
struct Sequence {
    slot: usize,
    ids: Vec<u32>,
    blocks: Vec<u32>,
    done: usize,
    kept: usize,
    /// From where on its logits mean something.
    exact: usize,
    solo: Vec<Vec<f32>>,
    told: String,
}

impl Sequence {
    fn piece(&self, tokens: usize) -> Segment {
        let end = self.ids.len().min(self.done + tokens);
        let logits = match (self.done >= self.exact, end > self.exact) {
            (true, _) => LogitRows::All,
            (false, true) => LogitRows::Last,
            (false, false) => LogitRows::None,
        };
        Segment {
            slot: self.slot,
            start: self.done,
            kept: self.kept,
            tokens: self.ids[self.done..end].to_vec(),
            blocks: self.blocks.clone(),
            logits,
        }
    }
}

/// Runs a piece of each sequence named in one batch and checks the rows that it gives.
fn step(
    backend: &mut dyn Backend,
    name: &str,
    sequences: &mut [Sequence],
    pieces: &[(usize, usize)],
) {
    let segments: Vec<Segment> = pieces
        .iter()
        .map(|&(i, tokens)| sequences[i].piece(tokens))
        .collect();
    let batch = Batch { segments };
    let told = |e| panic!("{name}: {e:#}\n{batch:?}");
    backend.forward(&batch).unwrap_or_else(told);
    let mut row = 0;
    for (segment, &(i, _)) in batch.segments.iter().zip(pieces) {
        let sequence = &mut sequences[i];
        let end = segment.start + segment.tokens.len();
        let first = match segment.logits {
            LogitRows::None => end,
            LogitRows::Last | LogitRows::Draw(_) => end - 1,
            LogitRows::All => segment.start,
        };
        let rows: Vec<Vec<f32>> = (first..end)
            .map(|_| {
                row += 1;
                backend.logits(row - 1).to_vec()
            })
            .collect();
        let what = format!(
            "slot {}, {}, rows {first}..{end}",
            sequence.slot, sequence.told
        );
        assert_same(name, &what, &rows, &sequence.solo[first..end]);
        sequence.done = end;
    }
}

/// Runs all sequences to their ends, several at a time, in pieces of any length.
fn run(backend: &mut dyn Backend, name: &str, sequences: &mut [Sequence], random: &mut Random) {
    while sequences.iter().any(|s| s.done < s.ids.len()) {
        let mut pieces: Vec<(usize, usize)> = (0..sequences.len())
            .filter(|&i| sequences[i].done < sequences[i].ids.len())
            .map(|i| (i, [0, 1, 2, 7, 30][random.below(5)]))
            .filter(|&(_, tokens)| tokens > 0)
            .collect();
        if pieces.is_empty() {
            continue;
        }
        let first = random.below(pieces.len());
        pieces.rotate_left(first);
        step(backend, name, sequences, &pieces);
    }
}

/// A first sequence leaves snapshots at any positions. Others then part from it anywhere: they share
/// its full blocks, copy the one in which they part, and begin at a snapshot before, at 0, or in the
/// middle of what is kept, one receptive field or more before its end; all in the same batches, the
/// first one's continuation among them. In the end the first one's blocks are what they were.
#[test]
fn sequences_that_share_a_prefix_equal_solo_runs() {
    let mut random = Random(fresh_seed());
    let (mut rebuilt, mut resumed) = (0, 0);
    for model in models(&mut random) {
        for name in backends() {
            for _ in 0..2 {
                let (a, b) = share(&name, &model, &mut random);
                (rebuilt, resumed) = (rebuilt + a, resumed + b);
            }
        }
    }
    assert!(
        rebuilt > 0 && resumed > 0,
        "{rebuilt} rebuilt, {resumed} resumed"
    );
}

/// Returns how many sequences were rebuilt from nothing, and how many resumed from a snapshot.
fn share(name: &str, model: &Arc<Model>, random: &mut Random) -> (usize, usize) {
    let field = model.config.receptive_field();
    let mut pool: Vec<u32> = (0..LIMITS.kv_blocks as u32).collect();
    for i in (1..pool.len()).rev() {
        pool.swap(i, random.below(i + 1));
    }
    let mut take = |n: usize| pool.split_off(pool.len() - n);
    let strays = take(250usize.div_ceil(KV_BLOCK));
    let mut backend = open_with(model, name, 2 + random.below(2), LIMITS);
    let backend = &mut *backend;

    let len = 60 + random.below(190);
    let ids = random.tokens(len, model.config.vocab);
    let read = ids.len() - random.below(9);
    let mut all = vec![Sequence {
        slot: 0,
        blocks: take(ids.len().div_ceil(KV_BLOCK)),
        done: 0,
        kept: 0,
        exact: 0,
        solo: score_with(name, model, &ids),
        told: "the first".into(),
        ids,
    }];
    let mut snapshots: Vec<usize> = Vec::new();
    while all[0].done < read {
        let tokens = (1 + random.below(40)).min(read - all[0].done);
        step(backend, name, &mut all, &[(0, tokens)]);
        if snapshots.len() < LIMITS.snapshots && random.below(2) == 0 {
            backend.save(0, snapshots.len()).unwrap();
            snapshots.push(all[0].done);
        }
    }

    let (mut rebuilt, mut resumed) = (0, 0);
    for slot in 1..LIMITS.slots {
        let kept = 1 + random.below(read);
        let more = 1 + random.below(50);
        let mut ids = all[0].ids[..kept].to_vec();
        ids.extend(random.tokens(more, model.config.vocab));
        let whole = kept / KV_BLOCK;
        let mut blocks = all[0].blocks[..whole].to_vec();
        blocks.extend(take(ids.len().div_ceil(KV_BLOCK) - whole));
        if !kept.is_multiple_of(KV_BLOCK) {
            backend
                .copy_block(all[0].blocks[whole], blocks[whole])
                .unwrap();
        }
        let before: Vec<usize> = (0..snapshots.len())
            .filter(|&i| snapshots[i] <= kept)
            .collect();
        let (done, exact) = match random.below(4) {
            0 => (0, 0),
            1 if !before.is_empty() => {
                let snapshot = before[random.below(before.len())];
                backend.restore(slot, snapshot).unwrap();
                resumed += 1;
                (snapshots[snapshot], 0)
            }
            _ if kept > field => {
                let latest = kept - field;
                let start = (1 + random.below(latest)).max(latest.saturating_sub(random.below(40)));
                if random.below(2) == 0 {
                    // The slot's windows end just there, by chance: they are another sequence's.
                    let other = random.tokens(start, model.config.vocab);
                    for (at, tokens) in other.chunks(LIMITS.batch_tokens).enumerate() {
                        let start = at * LIMITS.batch_tokens;
                        let mut piece = segment(start, tokens, LogitRows::None);
                        (piece.slot, piece.blocks) = (slot, strays.clone());
                        let segments = vec![piece];
                        backend.forward(&Batch { segments }).unwrap();
                    }
                }
                rebuilt += 1;
                (start, start + field)
            }
            _ => (0, 0),
        };
        all.push(Sequence {
            solo: score_with(name, model, &ids),
            told: format!("{kept} kept, from {done}, windows exact from {exact}"),
            ids,
            slot,
            blocks,
            done,
            kept,
            exact,
        });
    }
    run(backend, name, &mut all, random);

    // The first one once more, all of it kept: nobody has touched its keys and values.
    let first = &mut all[0];
    (first.done, first.kept, first.slot) = (0, first.ids.len(), random.below(LIMITS.slots));
    first.told = "the first again".into();
    run(backend, name, &mut all[..1], random);
    (rebuilt, resumed)
}

/// A server's common case: many sequences behind one prompt, all in one batch.
#[test]
fn many_sequences_behind_one_prompt_equal_solo_runs() {
    const MANY: usize = 32;
    let mut random = Random(fresh_seed());
    let model = models(&mut random).swap_remove(2);
    let prompt = random.tokens(75, model.config.vocab);
    let limits = Limits {
        slots: MANY,
        kv_blocks: 3 + MANY,
        batch_tokens: 5 * MANY,
        snapshots: 1,
    };
    for name in backends() {
        let mut backend = open_with(&model, &name, 2, limits);
        score(&mut *backend, &prompt, 75);
        backend.save(0, 0).unwrap();
        let mut all: Vec<Sequence> = (0..MANY)
            .map(|slot| {
                let mut ids = prompt.clone();
                let more = 3 + random.below(8);
                ids.extend(random.tokens(more, model.config.vocab));
                let own = 3 + slot as u32;
                backend.copy_block(2, own).unwrap();
                backend.restore(slot, 0).unwrap();
                Sequence {
                    solo: score_with(&name, &model, &ids),
                    told: "behind the prompt".into(),
                    ids,
                    slot,
                    blocks: vec![0, 1, own],
                    done: prompt.len(),
                    kept: 0,
                    exact: 0,
                }
            })
            .collect();
        let pieces: Vec<(usize, usize)> = (0..MANY).map(|i| (i, 1 + random.below(3))).collect();
        step(&mut *backend, &name, &mut all, &pieces);
        run(&mut *backend, &name, &mut all, &mut random);
    }
}

/// Values that are not numbers, left in a ring by a sequence that overflowed, reach nobody who
/// rebuilds the windows there.
#[test]
fn a_rebuild_sees_nothing_of_what_was_in_the_ring() {
    let mut random = Random(fresh_seed());
    let config = Config {
        window: 20,
        ..odd_shape()
    };
    let mut model = random_model(&mut random, config, &[Format::F32], &[Format::MXFP4]);
    let embedding = &mut model.weights.token_embd;
    let mut data = embedding.data.to_vec();
    let row = embedding.format.row_bytes(embedding.cols);
    data[7 * row..7 * row + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    embedding.data = Bytes::Owned(data.into());
    let (model, field) = (Arc::new(model), 2 * 19);
    assert_eq!(model.config.receptive_field(), field);
    let broken = vec![7; 90];
    let mut ids = random.tokens(100, model.config.vocab);
    ids.iter_mut().for_each(|id| *id += u32::from(*id == 7));
    let kept = 60 + random.below(30);
    for name in backends() {
        let solo = score_with(&name, &model, &ids);
        let mut backend = open_with(&model, &name, 2, LIMITS);
        score(&mut *backend, &ids[..kept], 160);
        let mut other = segment(0, &broken, LogitRows::None);
        (other.slot, other.blocks) = (1, vec![7, 8, 9]);
        backend
            .forward(&Batch {
                segments: vec![other],
            })
            .unwrap();
        let start = kept - field - random.below(kept - field);
        let mut sequence = [Sequence {
            slot: 1,
            blocks: vec![0, 1, 2, 3],
            done: start,
            kept,
            exact: start + field,
            solo,
            told: format!("{kept} kept, from {start}"),
            ids: ids.clone(),
        }];
        run(&mut *backend, &name, &mut sequence, &mut random);
    }
}

/// What can't be done is an error that says why, and nothing is lost by it.
#[test]
fn impossible_reuse_is_an_error() {
    let mut random = Random(fresh_seed());
    let model = models(&mut random).swap_remove(3); // window 33, two sliding layers
    let field = model.config.receptive_field();
    assert_eq!(field, 64);
    let ids = random.tokens(100, model.config.vocab);
    for name in backends() {
        let mut backend = open_with(&model, &name, 2, LIMITS);
        score(&mut *backend, &ids[..90], 90);
        backend.save(0, 5).unwrap();
        let says = |result: anyhow::Result<()>, what: &str| {
            let error = result.expect_err(what).to_string();
            assert!(
                error.contains(what),
                "{name}: {error:?} should say {what:?}"
            );
        };
        says(backend.save(0, 6), "snapshot 6 of 6");
        says(backend.save(5, 0), "slot 5 of 5");
        says(backend.restore(0, 4), "snapshot 4 holds nothing");
        says(
            backend.restore(0, usize::MAX),
            "snapshot 18446744073709551615 of 6",
        );
        says(backend.restore(9, 5), "slot 9 of 5");
        says(backend.copy_block(0, 64), "KV block 64 of 64");
        says(backend.copy_block(u32::MAX, 0), "KV block 4294967295 of 64");
        let piece = |slot, start, end: usize, kept, logits| Batch {
            segments: vec![Segment {
                slot,
                kept,
                blocks: vec![0, 1, 2],
                ..segment(start, &ids[start..end], logits)
            }],
        };
        let none = LogitRows::None;
        for (what, batch) in [
            ("slot 0 holds 90 tokens", piece(0, 89, 90, 90, none)),
            (
                "where the next 64 tokens are kept; not at 20 with 83 kept",
                piece(1, 20, 83, 83, none),
            ),
            (
                "97 tokens kept in a block table for 96",
                piece(0, 90, 91, 97, none),
            ),
            (
                "tokens kept in a block table",
                piece(0, 90, 91, usize::MAX, none),
            ),
            (
                "logits at position 83, and its windows are being rebuilt up to 84",
                piece(1, 20, 84, 90, LogitRows::Last),
            ),
            (
                "logits at position 20",
                piece(1, 20, 90, 90, LogitRows::All),
            ),
        ] {
            says(backend.forward(&batch), what);
        }
        // In the middle of a rebuild: what follows must keep as much, and there is nothing to save.
        backend.forward(&piece(1, 20, 50, 90, none)).unwrap();
        says(backend.save(1, 0), "being rebuilt up to position 84");
        says(
            backend.forward(&piece(1, 50, 90, 83, none)),
            "would overwrite good keys",
        );
        let mut sequence = [Sequence {
            slot: 1,
            blocks: vec![0, 1, 2, 3],
            done: 50,
            kept: 90,
            exact: 84,
            solo: score_with(&name, &model, &ids),
            told: "after errors".into(),
            ids: ids.clone(),
        }];
        run(&mut *backend, &name, &mut sequence, &mut random);
        // The snapshot is what it was.
        backend.restore(3, 5).unwrap();
        (sequence[0].slot, sequence[0].done) = (3, 90);
        run(&mut *backend, &name, &mut sequence, &mut random);
    }
}

/// Whatever stands in a batch, it runs or is refused.
#[test]
fn no_batch_panics() {
    let mut random = Random(fresh_seed());
    let model = models(&mut random).swap_remove(2);
    for name in backends() {
        let mut backend = open_with(&model, &name, 2, LIMITS);
        let mut ran = 0;
        for _ in 0..300 {
            let odd = [0, 1, 31, 32, 33, 63, 90, 131072, usize::MAX - 1, usize::MAX];
            // Mostly below `most`, so that many batches do run.
            let mut draw = |most: usize| match random.below(30) {
                0 => odd[random.below(odd.len())],
                _ => random.below(most),
            };
            let first = draw(5) % 5;
            let segments = (0..1 + draw(3) % 4).map(|i| {
                let start = [0, 0, draw(140)][draw(3) % 3];
                let (kept, tokens, blocks) = (draw(140), draw(40), 5usize.saturating_add(draw(3)));
                Segment {
                    slot: [(first + i) % 5, draw(5)][usize::from(draw(9) == 0)],
                    start,
                    kept,
                    tokens: (0..tokens.min(200))
                        .map(|_| draw(101) as u32 % 102)
                        .collect(),
                    blocks: (0..blocks.min(70)).map(|_| draw(64) as u32 % 65).collect(),
                    logits: [LogitRows::None, LogitRows::Last, LogitRows::All][draw(3) % 3],
                }
            });
            let segments = segments.collect();
            ran += usize::from(backend.forward(&Batch { segments }).is_ok());
            let (slot, snapshot) = (draw(5), draw(6));
            let _ = backend.save(slot, snapshot);
            let _ = backend.restore(draw(5), draw(6));
            let _ = backend.copy_block(draw(64) as u32, draw(64) as u32);
        }
        assert!((10..290).contains(&ran), "{name}: {ran} of 300 batches ran");
    }
}

/// A snapshot of gpt-oss-20b is 3.75 MiB, and its receptive field 1,524 positions.
#[test]
fn the_released_shape_has_small_snapshots() {
    let config = Config {
        layers: 24,
        hidden: 2880,
        heads: 64,
        kv_heads: 8,
        window: 128,
        ..odd_shape()
    };
    assert_eq!(snapshot_bytes(&config), 15 << 18);
    assert_eq!(config.receptive_field(), 1524);
}
