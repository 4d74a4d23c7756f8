//! When a worker is given up, and when the next one may start.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// So many failures within [`WINDOW`] open the breaker.
const MOST_FAILURES: usize = 3;
/// How long a failure counts.
const WINDOW: Duration = Duration::from_secs(300);
/// Before the second restart in a row; the first comes at once, and each later one waits twice as long.
const BACK_OFF: Duration = Duration::from_secs(1);

/// How long a worker may be silent.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Between pings.
    pub ping: Duration,
    /// For the answer to a ping: it comes from a thread that does nothing else.
    pub pong: Duration,
    /// For a token, or for progress with a prompt, while requests run.
    pub step: Duration,
    /// For its first word: Python and its libraries are there then.
    pub hello: Duration,
    /// For the model to be loaded.
    pub load: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            ping: Duration::from_secs(2),
            // Python's lock may be held for a while where kernels are compiled or memory is short.
            pong: Duration::from_secs(30),
            step: Duration::from_secs(180),
            // Seconds; much longer where files are read for the first time, from a slow disk.
            hello: Duration::from_secs(90),
            load: Duration::from_secs(1800),
        }
    }
}

/// Counts failures.
#[derive(Debug, Default)]
pub struct Breaker(VecDeque<Instant>);

impl Breaker {
    /// Notes a failure; from when on another worker may be tried, and whether requests should wait for
    /// that (else the breaker is open, and they fail).
    pub fn failed(&mut self, now: Instant) -> (Instant, bool) {
        self.0
            .retain(|&then| now.saturating_duration_since(then) < WINDOW);
        self.0.push_back(now);
        let failures = self.0.len();
        if failures >= MOST_FAILURES {
            let oldest = self.0.front().copied().unwrap_or(now);
            return (oldest + WINDOW, false);
        }
        let wait = match failures {
            1 => Duration::ZERO,
            n => BACK_OFF * (1 << (n - 2)),
        };
        (now + wait, true)
    }
}

/// Is it still there?
#[derive(Debug)]
pub struct Watch {
    patience: Patience,
    started: Instant,
    /// It speaks: from then on it is to answer.
    greeted: bool,
    loaded: bool,
    /// When it was asked, and has not answered since.
    asked: Option<Instant>,
    /// When it was asked last.
    pinged: Instant,
    /// When it last got on with anything.
    moved: Instant,
}

impl Watch {
    /// Over a worker that was started just now.
    pub fn new(patience: Patience, now: Instant) -> Watch {
        Watch {
            patience,
            started: now,
            greeted: false,
            loaded: false,
            asked: None,
            pinged: now,
            moved: now,
        }
    }

    /// It said anything at all.
    pub fn heard(&mut self) {
        (self.greeted, self.asked) = (true, None);
    }

    /// Its model is there.
    pub fn loaded(&mut self, now: Instant) {
        self.loaded = true;
        self.moved = now;
    }

    /// It got on with its work, or got work while it had none.
    pub fn moved(&mut self, now: Instant) {
        self.moved = now;
    }

    /// Whether it should be asked for a sign of life now.
    pub fn is_ping_due(&mut self, now: Instant) -> bool {
        let due = self.greeted
            && self.asked.is_none()
            && now.saturating_duration_since(self.pinged) >= self.patience.ping;
        if due {
            (self.asked, self.pinged) = (Some(now), now);
        }
        due
    }

    /// Why it has to be given up; `works` says that it has something to do that depends on nobody else.
    pub fn verdict(&self, now: Instant, works: bool) -> Option<String> {
        let since = |then: Instant| now.saturating_duration_since(then);
        let Patience {
            pong,
            step,
            hello,
            load,
            ..
        } = self.patience;
        let gone = |what: &str, limit: Duration| Some(format!("{what} for {} s", limit.as_secs()));
        if self.asked.is_some_and(|asked| since(asked) > pong) {
            return gone("it gave no sign of life", pong);
        }
        if !self.greeted && since(self.started) > hello {
            return gone("it did not say a word", hello);
        }
        if !self.loaded {
            return (since(self.started) > load)
                .then(|| format!("its model was not loaded within {} s", load.as_secs()));
        }
        match works && since(self.moved) > step {
            true => gone("it got on with no request", step),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_worker_that_keeps_failing_is_left_alone_for_a_while() {
        let (mut breaker, start) = (Breaker::default(), Instant::now());
        let at = |seconds| start + seconds * SECOND;
        assert_eq!(breaker.failed(at(0)), (at(0), true));
        assert_eq!(breaker.failed(at(10)), (at(11), true));
        // The third within five minutes: until the first is forgotten.
        assert_eq!(breaker.failed(at(20)), (at(300), false));
        assert_eq!(breaker.failed(at(301)), (at(310), false));
        // Long after, as if nothing had been.
        assert_eq!(breaker.failed(at(1000)), (at(1000), true));
    }

    #[test]
    fn silence_ends_patience() {
        let start = Instant::now();
        let at = |seconds| start + seconds * SECOND;
        let patience = Patience {
            ping: 2 * SECOND,
            pong: 5 * SECOND,
            step: 60 * SECOND,
            hello: 10 * SECOND,
            load: 100 * SECOND,
        };
        let mut watch = Watch::new(patience, start);
        // Nothing is asked of one that has not begun to listen.
        assert!(!watch.is_ping_due(at(3)));
        assert_eq!(watch.verdict(at(10), false), None);
        let mute = Some("it did not say a word for 10 s".to_owned());
        assert_eq!(watch.verdict(at(11), false), mute);
        watch.heard();
        assert!(watch.is_ping_due(at(3)));
        // One question at a time.
        assert!(!watch.is_ping_due(at(6)));
        assert_eq!(watch.verdict(at(8), false), None);
        let silent = Some("it gave no sign of life for 5 s".to_owned());
        assert_eq!(watch.verdict(at(9), false), silent);
        watch.heard();
        assert_eq!(watch.verdict(at(100), true), None);
        let slow = Some("its model was not loaded within 100 s".to_owned());
        assert_eq!(watch.verdict(at(101), false), slow);
        watch.loaded(at(101));
        assert_eq!(watch.verdict(at(161), true), None);
        // Idle, it has all the time.
        assert_eq!(watch.verdict(at(500), false), None);
        let stuck = Some("it got on with no request for 60 s".to_owned());
        assert_eq!(watch.verdict(at(162), true), stuck);
        watch.moved(at(162));
        assert_eq!(watch.verdict(at(200), true), None);
    }
}
