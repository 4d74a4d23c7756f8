//! Who may ask: API keys, or else only this machine.

use anyhow::Result;

/// The keys that are accepted, as hashes.
pub(super) struct Keys;

impl Keys {
    pub fn new(_keys: &[String]) -> Result<Keys> {
        Ok(Keys)
    }
}
