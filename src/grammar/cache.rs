//! A few things by their text, the least recently used out.

/// Most entries.
const ENTRIES: usize = 64;
/// Most bytes of keys.
const KEY_BYTES: usize = 4 << 20;

/// Entries in order of use, the latest last.
pub(super) struct Cache<T>(Vec<(String, T)>);

impl<T> Cache<T> {
    pub fn new() -> Cache<T> {
        Cache(Vec::new())
    }

    pub fn get(&mut self, key: &str) -> Option<&T> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        let found = self.0.remove(at);
        self.0.push(found);
        self.0.last().map(|(_, value)| value)
    }

    pub fn put(&mut self, key: String, value: T) {
        self.0.retain(|(known, _)| *known != key);
        self.0.push((key, value));
        let mut bytes: usize = self.0.iter().map(|(key, _)| key.len()).sum();
        while self.0.len() > ENTRIES || (bytes > KEY_BYTES && self.0.len() > 1) {
            let (key, _) = self.0.remove(0);
            bytes -= key.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_goes() {
        let mut cache = Cache::new();
        for n in 0..ENTRIES {
            cache.put(n.to_string(), n);
        }
        assert_eq!(cache.get("0"), Some(&0));
        cache.put("more".to_owned(), 1000);
        assert_eq!(cache.get("0"), Some(&0));
        assert_eq!(cache.get("1"), None);
        let large = "x".repeat(KEY_BYTES);
        cache.put(large.clone(), 1);
        assert_eq!(cache.get("0"), None);
        assert_eq!(cache.get(&large), Some(&1));
    }
}
