//! How a step is shared: which rows run, and where prompts are cut. Numbers only; no choice here
//! changes any answer.

use std::{collections::VecDeque, time::Duration};

/// Windows are kept every so many tokens, whatever the tokens are.
pub const GRID: usize = 1024;
/// The last messages' beginnings are where the next prompt is likely to part from this one.
const LAST_MARKERS: usize = 4;
/// A cut costs a pass over the weights, about what two dozen rows cost on a CPU: it pays when it
/// spares others at least this many.
pub const WORTH: usize = 64;
/// The same for what is less likely to be asked for again.
const RARELY_WORTH: usize = 512;
/// A prompt without a marker this near to its end is cut before its last token, for those who ask
/// the same again.
const NEAR_END: usize = 256;
/// Longest that decoding sequences wait for a piece of somebody's prompt.
const PIECE_TIME: Duration = Duration::from_millis(500);
/// Rows of a prompt that run whatever they take.
const LEAST_PIECE: usize = 16;

/// Where to cut a prompt `tokens` that goes on at `from`, so that the windows can be kept there.
/// Before each `marker`, where messages begin, but not where cuts would come too close to pay.
pub fn cuts(tokens: &[u32], from: usize, marker: Option<u32>) -> Vec<usize> {
    let end = tokens.len();
    let is_marker = |&at: &usize| marker.is_some() && tokens.get(at).copied() == marker;
    let inner = || (from + 1).min(end)..end;
    let nth_last = inner().rev().filter(is_marker).nth(LAST_MARKERS - 1);
    let recent = nth_last.unwrap_or(from);
    let last_near = inner().rev().take(NEAR_END).any(|at| is_marker(&at));
    let mut cuts = Vec::new();
    let mut previous = from;
    for at in inner() {
        let apart = at - previous;
        let cut = at.is_multiple_of(GRID)
            || is_marker(&at) && apart >= if at >= recent { WORTH } else { RARELY_WORTH }
            || at + 1 == end && !last_near && apart >= NEAR_END;
        if cut {
            cuts.push(at);
            previous = at;
        }
    }
    cuts
}

/// Where to cut a prompt that has run up to `done` and has `cuts` already, for one that shares its first
/// `len` tokens: there, or a little before, so that cuts are never closer than pays.
pub fn cut_at(len: usize, done: usize, cuts: &VecDeque<usize>) -> usize {
    let next = cuts.partition_point(|&cut| cut <= len);
    let after = cuts.get(next).copied();
    let before = next.checked_sub(1).and_then(|at| cuts.get(at).copied());
    let at = match after {
        Some(after) if after < len + WORTH => after.saturating_sub(WORTH),
        _ => len,
    };
    match before {
        Some(before) if before > done && at < before + WORTH => before,
        _ => at,
    }
}

/// What a sequence with a prompt under way could use.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// Rows up to its next cut.
    pub rows: usize,
    /// Rows to the end of its prompt, or to where the first that follows it goes on alone.
    pub remaining: usize,
    /// Order of arrival.
    pub id: u64,
}

/// Shares `budget` rows between prompts: a quarter for the oldest, so that it never starves; the rest
/// to those that need the least, so that a short prompt doesn't wait for a long one.
pub fn shares(wants: &[Want], budget: usize) -> Vec<usize> {
    let mut given = vec![0; wants.len()];
    let mut left = budget;
    let mut give = |i: usize, most: usize, left: &mut usize| {
        let rows = (wants[i].rows - given[i]).min(most).min(*left);
        given[i] += rows;
        *left -= rows;
    };
    let mut order: Vec<usize> = (0..wants.len()).collect();
    if let Some(oldest) = order.iter().copied().min_by_key(|&i| wants[i].id) {
        give(oldest, budget.div_ceil(4), &mut left);
    }
    order.sort_by_key(|&i| (wants[i].remaining, wants[i].id));
    for i in order {
        give(i, usize::MAX, &mut left);
    }
    given
}

/// How long things take here, as moving averages.
#[derive(Debug, Default)]
pub struct Pace {
    /// Seconds for a step of decoding rows only: what reading the weights takes.
    decode: Option<f64>,
    /// Seconds for a row of a prompt, beyond that.
    row: Option<f64>,
    /// Seconds from one finished request to the next, while others waited or ran.
    gap: Option<f64>,
}

impl Pace {
    /// Notes a step that had `rows` of prompts.
    pub fn stepped(&mut self, rows: usize, took: Duration) {
        let took = took.as_secs_f64();
        if rows == 0 {
            average(&mut self.decode, took);
        } else if rows >= LEAST_PIECE {
            let own = (took - self.decode.unwrap_or(0.0)).max(took / 10.0);
            average(&mut self.row, own / rows as f64);
        }
    }

    /// Notes that a request finished so long after the one before.
    pub fn finished(&mut self, gap: Duration) {
        average(&mut self.gap, gap.as_secs_f64());
    }

    /// Rows of prompts that may run while others wait to decode.
    pub fn piece(&self, budget: usize) -> usize {
        let rows = match self.row {
            Some(row) => (PIECE_TIME.as_secs_f64() / row) as usize,
            None => WORTH,
        };
        rows.max(LEAST_PIECE).min(budget)
    }

    /// When a place in the queue is likely to be free, if the last became free `since` then: whole
    /// seconds, a minute at most.
    pub fn retry_after(&self, since: Duration) -> Duration {
        let seconds = self.gap.unwrap_or(0.0).max(since.as_secs_f64());
        Duration::from_secs_f64(seconds.ceil().clamp(1.0, 60.0))
    }
}

fn average(mean: &mut Option<f64>, value: f64) {
    const SHARE: f64 = 0.2;
    *mean = Some(mean.map_or(value, |mean| mean + SHARE * (value - mean)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_share_cuts_that_pay() {
        let at = |len, done, cuts: &[usize]| cut_at(len, done, &cuts.iter().copied().collect());
        assert_eq!(at(500, 0, &[]), 500);
        assert_eq!(at(500, 0, &[400, 600]), 500);
        // Near a cut that is there already, before or behind.
        assert_eq!(at(500, 0, &[437, 600]), 437);
        assert_eq!(at(500, 437, &[437, 600]), 500);
        assert_eq!(at(500, 0, &[400, 540]), 476);
        assert_eq!(at(500, 0, &[420, 540]), 420);
        assert_eq!(at(500, 0, &[500]), 500);
        assert_eq!(at(20, 0, &[40]), 0);
        // However many part, and wherever: no cut is nearer to the next than pays.
        let mut cuts = VecDeque::new();
        for i in 0..5000usize {
            let len = i * i % 9973;
            let cut = cut_at(len, 0, &cuts);
            assert!(cut <= len && len - cut <= 2 * WORTH, "{cut} of {len}");
            // Less is not waited for.
            if let Err(place) = cuts.binary_search(&cut)
                && cut >= WORTH
            {
                cuts.insert(place, cut);
            }
        }
        let apart = cuts.iter().zip(cuts.iter().skip(1)).map(|(a, b)| b - a);
        assert!(apart.min() >= Some(WORTH), "{cuts:?}");
    }

    #[test]
    fn prompts_are_cut_where_others_may_part() {
        const S: u32 = 7;
        let prompt = |messages: &[usize]| {
            let mut tokens = Vec::new();
            for &len in messages {
                tokens.push(S);
                tokens.resize(tokens.len() + len - 1, 1);
            }
            tokens
        };
        // System message, question, `<|start|>assistant`: others share the first.
        assert_eq!(cuts(&prompt(&[80, 30, 2]), 0, Some(S)), [80]);
        assert!(cuts(&prompt(&[80, 30, 2]), 80, Some(S)).is_empty());
        assert_eq!(cuts(&prompt(&[80, 300, 2]), 0, Some(S)), [80, 380]);
        assert!(cuts(&prompt(&[30, 30, 2]), 0, Some(S)).is_empty());
        // A long history of short messages: every 512 tokens, then the last ones.
        let long = cuts(&prompt(&[100; 30]), 0, Some(S));
        assert_eq!(long, [600, 1024, 1600, 2048, 2600, 2700, 2800, 2900]);
        // Without markers: before the last token.
        assert_eq!(cuts(&[1; 300], 0, Some(S)), [299]);
        assert_eq!(cuts(&[1; 300], 0, None), [299]);
        assert!(cuts(&[1; 200], 0, None).is_empty());
        assert_eq!(cuts(&[1; 2100], 0, None), [1024, 2048]);
        assert!(cuts(&[1; 2100], 2100, None).is_empty());
        assert!(cuts(&[], 0, None).is_empty());
    }

    #[test]
    fn the_oldest_advances_and_the_shortest_is_soon_done() {
        let want = |id, remaining| Want {
            rows: remaining,
            remaining,
            id,
        };
        let wants = [want(1, 100_000), want(5, 30), want(3, 1_000)];
        assert_eq!(shares(&wants, 512), [128, 30, 354]);
        assert_eq!(shares(&wants[..1], 512), [512]);
        assert!(shares(&[], 512).is_empty());
        assert_eq!(shares(&wants, 1), [1, 0, 0]);
        let cut = Want {
            rows: 10,
            remaining: 500,
            id: 0,
        };
        assert_eq!(shares(&[cut, want(1, 900)], 512), [10, 502]);
    }

    #[test]
    fn a_slow_machine_gets_smaller_pieces() {
        let mut pace = Pace::default();
        assert_eq!(pace.piece(512), WORTH);
        pace.stepped(100, Duration::from_millis(100));
        assert_eq!(pace.piece(512), 500);
        for _ in 0..50 {
            pace.stepped(100, Duration::from_secs(100));
        }
        assert_eq!(pace.piece(512), LEAST_PIECE);
        assert_eq!(pace.piece(4), 4);
        // Reading the weights takes its time whatever the piece: pieces don't shrink for that.
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.stepped(0, Duration::from_millis(600));
            let rows = pace.piece(512);
            pace.stepped(rows, Duration::from_millis(600 + 5 * rows as u64));
        }
        assert!((90..=101).contains(&pace.piece(512)), "{pace:?}");
    }

    #[test]
    fn a_full_queue_is_worth_a_while() {
        let mut pace = Pace::default();
        let seconds = Duration::from_secs;
        assert_eq!(pace.retry_after(Duration::ZERO), seconds(1));
        assert_eq!(pace.retry_after(seconds(7)), seconds(7));
        pace.finished(seconds(20));
        assert_eq!(pace.retry_after(seconds(7)), seconds(20));
        pace.finished(seconds(2000));
        assert_eq!(pace.retry_after(seconds(7)), seconds(60));
    }
}
