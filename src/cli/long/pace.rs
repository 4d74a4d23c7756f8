//! How long what comes next will take, by what was measured so far.
//!
//! A prompt's rows cost the same each, and what each attends to costs more the deeper it stands: reading
//! tokens `a..b` takes `linear * (b - a) + quadratic * (b² - a²) / 2`. Two pieces at different depths give
//! both; until then the second follows from the first.

use std::time::{Duration, Instant};

/// Of one row's arithmetic, the part that one position of context adds, before it was measured. (Attention is
/// 3.2e-5 of gpt-oss-20b's arithmetic for each, and runs slower than products.)
const FIRST_GUESS: f64 = 8e-5;

/// A piece of a prompt, read.
#[derive(Debug, Clone, Copy)]
struct Piece {
    from: f64,
    to: f64,
    seconds: f64,
}

impl Piece {
    /// Rows, and the positions that they see.
    fn amounts(&self) -> (f64, f64) {
        let seen = (self.to * self.to - self.from * self.from) / 2.0;
        (self.to - self.from, seen)
    }
}

/// What was measured of one engine.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    pieces: Vec<Piece>,
    /// Seconds of a decoded token, at the last depth.
    token: f64,
}

impl Pace {
    /// A prompt's tokens `from..to` took so long.
    pub fn read(&mut self, from: usize, to: usize, seconds: f64) {
        if to > from && seconds > 0.0 {
            self.pieces.push(Piece {
                from: from as f64,
                to: to as f64,
                seconds,
            });
        }
    }

    /// A token took so long to decode.
    pub fn decoded(&mut self, seconds: f64) {
        self.token = seconds;
    }

    /// Seconds that reading a prompt's tokens `from..to` will take; 0 while nothing is known.
    pub fn reading(&self, from: usize, to: usize) -> f64 {
        let (linear, quadratic) = self.fit();
        let piece = Piece {
            from: from as f64,
            to: to.max(from) as f64,
            seconds: 0.0,
        };
        let (rows, seen) = piece.amounts();
        linear * rows + quadratic * seen
    }

    /// Seconds that decoding so many tokens takes.
    pub fn decoding(&self, tokens: usize) -> f64 {
        self.token * tokens as f64
    }

    /// Least squares of relative errors, neither part below 0.
    fn fit(&self) -> (f64, f64) {
        let (mut rr, mut rs, mut ss, mut r, mut s) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for piece in &self.pieces {
            let (rows, seen) = piece.amounts();
            let (rows, seen) = (rows / piece.seconds, seen / piece.seconds);
            (rr, rs, ss) = (rr + rows * rows, rs + rows * seen, ss + seen * seen);
            (r, s) = (r + rows, s + seen);
        }
        let determinant = rr * ss - rs * rs;
        if self.pieces.len() > 2 && determinant > 1e-9 * rr * ss {
            let linear = (r * ss - s * rs) / determinant;
            let quadratic = (s * rr - r * rs) / determinant;
            if linear > 0.0 && quadratic >= 0.0 {
                return (linear, quadratic);
            }
        }
        // The last piece is the longest.
        let Some(last) = self.pieces.last() else {
            return (0.0, 0.0);
        };
        let (rows, seen) = last.amounts();
        let linear = last.seconds / (rows + FIRST_GUESS * seen);
        (linear, linear * FIRST_GUESS)
    }
}

/// The time there is.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    ends: Instant,
}

impl Budget {
    /// So much from now on.
    pub fn new(time: Duration) -> Budget {
        Budget {
            ends: Instant::now() + time,
        }
    }

    /// An equal share of what is left, for one of so many.
    pub fn share(&self, of: usize) -> Budget {
        Budget::new(self.left().div_f64(of.max(1) as f64))
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.ends.saturating_duration_since(Instant::now())
    }

    /// Whether so many seconds are left.
    pub fn has(&self, seconds: f64) -> bool {
        seconds <= self.left().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-6, "{found}, {expected}");
    }

    #[test]
    fn the_time_of_a_prompt_is_extrapolated() {
        let truth = |from: f64, to: f64| 0.01 * (to - from) + 2e-7 * (to * to - from * from) / 2.0;
        let mut pace = Pace::default();
        assert_eq!(pace.reading(0, 1000), 0.0);
        pace.read(0, 1024, truth(0.0, 1024.0));
        // One piece: as it was, and more for what is deeper.
        about(pace.reading(0, 1024), truth(0.0, 1024.0));
        assert!(pace.reading(1024, 2048) > 1.05 * pace.reading(0, 1024));
        pace.read(1024, 4096, truth(1024.0, 4096.0));
        pace.read(4096, 8192, truth(4096.0, 8192.0));
        about(pace.reading(8192, 131_072), truth(8192.0, 131_072.0));
        assert_eq!(pace.reading(10, 10), 0.0);
        // Noise that would make attention a gift is not believed.
        pace.read(8192, 16_384, 1.0);
        assert!(pace.reading(16_384, 32_768) >= 0.0);
        pace.decoded(0.1);
        about(pace.decoding(20), 2.0);
    }

    #[test]
    fn a_budget_is_shared_by_those_to_come() {
        let budget = Budget::new(Duration::from_secs(100));
        assert!(budget.has(99.0) && !budget.has(101.0));
        let half = budget.share(2);
        assert!(half.has(49.0) && !half.has(51.0));
        assert!(!Budget::new(Duration::ZERO).has(0.001));
    }
}
