//! Requests a minute, for each key or peer.

/// A token bucket for each key or peer.
pub(super) struct RateLimiter;

impl RateLimiter {
    pub fn new(_per_minute: u32) -> RateLimiter {
        RateLimiter
    }
}
