//! Requests a minute, for each key or peer: a bucket of tokens that fills at an even pace.

use super::auth::Payer;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use rustc_hash::FxHashMap;
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Buckets that are remembered; beyond it the full ones are forgotten, which loses nothing, and if all
/// are in use everybody new shares one.
const MOST_BUCKETS: usize = 10_000;

/// A bucket of `limit` requests for each payer; it fills up in a minute.
pub(super) struct RateLimiter {
    limit: u32,
    buckets: Mutex<FxHashMap<Payer, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// What a request found.
pub(super) struct Spent {
    /// Refused; until a request is allowed again.
    pub wait: Option<Duration>,
    left: f64,
    full_in: Duration,
}

impl RateLimiter {
    /// `limit` requests a minute.
    pub fn new(limit: u32) -> RateLimiter {
        let buckets = Mutex::default();
        let limit = limit.max(1);
        RateLimiter { limit, buckets }
    }

    /// Requests a minute.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Counts one request.
    pub fn spend(&self, payer: Payer) -> Spent {
        self.spend_at(payer, Instant::now())
    }

    fn spend_at(&self, payer: Payer, now: Instant) -> Spent {
        let most = f64::from(self.limit);
        let a_second = most / 60.0;
        let filled = |bucket: &Bucket| {
            let gained = now.duration_since(bucket.at).as_secs_f64() * a_second;
            (bucket.left + gained).min(most)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut payer = payer;
        if buckets.len() >= MOST_BUCKETS && !buckets.contains_key(&payer) {
            buckets.retain(|_, bucket| filled(bucket) < most);
            if buckets.len() >= MOST_BUCKETS {
                payer = Payer::Unknown;
            }
        }
        let bucket = buckets.entry(payer).or_insert(Bucket {
            left: most,
            at: now,
        });
        let mut left = filled(bucket);
        let allowed = left >= 1.0;
        left -= f64::from(allowed);
        *bucket = Bucket { left, at: now };
        let seconds = |tokens: f64| Duration::from_secs_f64((tokens / a_second).max(0.0));
        Spent {
            wait: (!allowed).then(|| seconds(1.0 - left)),
            left,
            full_in: seconds(most - left),
        }
    }
}

impl Spent {
    /// Writes OpenAI's `x-ratelimit-*-requests`.
    pub fn tell(&self, limit: u32, headers: &mut HeaderMap) {
        let reset = format!("{:.1}s", self.full_in.as_secs_f64());
        for (name, value) in [
            ("x-ratelimit-limit-requests", limit.to_string()),
            (
                "x-ratelimit-remaining-requests",
                (self.left as u64).to_string(),
            ),
            ("x-ratelimit-reset-requests", reset),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn a_bucket_empties_and_fills_evenly() {
        let limiter = RateLimiter::new(3);
        let start = Instant::now();
        let spend = |key: u8, seconds: f64| {
            let at = start + Duration::from_secs_f64(seconds);
            limiter.spend_at(Payer::Key([key; 32]), at).wait
        };
        for _ in 0..3 {
            assert_eq!(spend(1, 0.0), None);
        }
        assert_eq!(spend(1, 0.0), Some(Duration::from_secs(20)));
        assert_eq!(spend(2, 0.0), None, "another key has its own bucket");
        assert_eq!(spend(1, 15.0), Some(Duration::from_secs(5)));
        assert_eq!(spend(1, 20.0), None);
        assert!(spend(1, 20.0).is_some());
        for _ in 0..3 {
            assert_eq!(
                spend(1, 600.0),
                None,
                "never more than the limit is saved up"
            );
        }
        assert!(spend(1, 600.0).is_some());
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let limiter = RateLimiter::new(60);
        let now = Instant::now();
        for n in 0..2 * MOST_BUCKETS as u32 {
            limiter.spend_at(Payer::Peer(IpAddr::from(n.to_be_bytes())), now);
        }
        assert!(limiter.buckets.lock().unwrap().len() <= MOST_BUCKETS + 1);
        // A minute later all are full again and make room.
        let later = now + Duration::from_secs(61);
        limiter.spend_at(Payer::Key([0; 32]), later);
        assert!(limiter.buckets.lock().unwrap().len() < 10);
    }

    #[test]
    fn headers_count_down() {
        let limiter = RateLimiter::new(2);
        let mut headers = HeaderMap::new();
        let spent = limiter.spend_at(Payer::Unknown, Instant::now());
        spent.tell(2, &mut headers);
        assert_eq!(headers["x-ratelimit-limit-requests"], "2");
        assert_eq!(headers["x-ratelimit-remaining-requests"], "1");
        assert_eq!(headers["x-ratelimit-reset-requests"], "30.0s");
    }
}
