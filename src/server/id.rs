//! Names for what the server makes: unguessable, and never the same twice.

use rustls::crypto::ring;
use std::fmt::Write as _;

/// `prefix` and 96 random bits in hexadecimal.
pub fn fresh(prefix: &str) -> String {
    let mut bytes = [0; 12];
    if ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .is_err()
    {
        // Without the system's random numbers at least never twice.
        use std::hash::{BuildHasher, RandomState};
        let (a, b) = (
            RandomState::new().hash_one(1),
            RandomState::new().hash_one(2),
        );
        bytes[..8].copy_from_slice(&a.to_le_bytes());
        bytes[8..].copy_from_slice(&b.to_le_bytes()[..4]);
    }
    let mut id = prefix.to_owned();
    for byte in bytes {
        let _ = write!(id, "{byte:02x}");
    }
    id
}
