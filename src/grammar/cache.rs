//! A few things by their text, the least recently used out.
//!
//! Always: at most [`ENTRIES`] of them, of [`BYTES`] together, or a single one.

/// Most entries: more than a request may have strict tools, so that the same tools sent again are
/// all here.
const ENTRIES: usize = 1024;
/// Most bytes of keys and values.
const BYTES: usize = 256 << 20;

/// Entries in order of use, the latest last.
pub(super) struct Cache<T>(Vec<Entry<T>>);

struct Entry<T> {
    key: String,
    value: T,
    bytes: usize,
}

impl<T: Clone> Cache<T> {
    pub fn new() -> Cache<T> {
        Cache(Vec::new())
    }

    pub fn get(&mut self, key: &str) -> Option<T> {
        let at = self.0.iter().position(|entry| entry.key == key)?;
        let found = self.0.remove(at);
        self.0.push(found);
        self.0.last().map(|entry| entry.value.clone())
    }

    /// Keeps `value`, which takes `bytes` besides its key.
    pub fn put(&mut self, key: String, value: T, bytes: usize) {
        self.0.retain(|entry| entry.key != key);
        let bytes = bytes + key.len();
        self.0.push(Entry { key, value, bytes });
        let mut sum: usize = self.0.iter().map(|entry| entry.bytes).sum();
        while self.0.len() > ENTRIES || (sum > BYTES && self.0.len() > 1) {
            sum -= self.0.remove(0).bytes;
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
            cache.put(n.to_string(), n, 1);
        }
        assert_eq!(cache.get("0"), Some(0));
        cache.put("more".to_owned(), 5000, 1);
        assert_eq!(cache.get("0"), Some(0));
        assert_eq!(cache.get("1"), None);
        // A large one pushes out as many as it must, a larger one all.
        cache.put("half".to_owned(), 1, BYTES / 2);
        cache.put("most".to_owned(), 2, BYTES / 2);
        assert_eq!((cache.get("0"), cache.get("half")), (None, None));
        assert_eq!(cache.get("most"), Some(2));
        cache.put("all".to_owned(), 3, 2 * BYTES);
        assert_eq!((cache.get("most"), cache.get("all")), (None, Some(3)));
    }
}
