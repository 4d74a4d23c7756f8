//! How the hub names a file's content: sha256 for what lies in its large-file store, git's own hash of
//! a blob for the small files of the repository itself.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fmt;

/// The hash that a whole file must have; also its name among the cache's blobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hash {
    /// sha256 of the content, 64 lower-case hexadecimal digits.
    Sha256(String),
    /// sha1 of `blob LENGTH\0` and the content, 40 lower-case hexadecimal digits.
    GitBlob(String),
}

impl Hash {
    /// Reads an ETag as the hub writes it: quoted or not, weak or not, in any case.
    pub fn from_tag(tag: &str) -> Option<Hash> {
        let tag = tag.trim_start_matches("W/").trim_matches('"');
        let hex = tag.to_ascii_lowercase();
        if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        match hex.len() {
            64 => Some(Hash::Sha256(hex)),
            40 => Some(Hash::GitBlob(hex)),
            _ => None,
        }
    }

    /// Its digits.
    pub fn hex(&self) -> &str {
        match self {
            Hash::Sha256(hex) | Hash::GitBlob(hex) => hex,
        }
    }

    /// What computes it, for a file of `size` bytes.
    pub fn hasher(&self, size: u64) -> Hasher {
        match self {
            Hash::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Hash::GitBlob(_) => {
                Hasher::Sha1(Sha1::new_with_prefix(format!("blob {size}\0").as_bytes()))
            }
        }
    }

    /// As messages call it.
    pub fn name(&self) -> &'static str {
        match self {
            Hash::Sha256(_) => "sha256",
            Hash::GitBlob(_) => "git hash",
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hex())
    }
}

/// A hash under way.
#[derive(Clone)]
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::Sha1(hash) => hash.update(bytes),
        }
    }

    /// The digits of what was hashed so far.
    pub fn hex(&self) -> String {
        let digits = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        match self {
            Hasher::Sha256(hash) => digits(&hash.clone().finalize()),
            Hasher::Sha1(hash) => digits(&hash.clone().finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_apart_by_their_length() {
        let sha256 = "AB".repeat(32);
        assert_eq!(
            Hash::from_tag(&format!("W/\"{sha256}\"")),
            Some(Hash::Sha256("ab".repeat(32)))
        );
        let sha1 = "0123456789".repeat(4);
        assert_eq!(Hash::from_tag(&sha1), Some(Hash::GitBlob(sha1.clone())));
        for bad in [
            "",
            "\"\"",
            "xyz",
            &sha1[1..],
            &"g".repeat(40),
            &"é".repeat(20),
        ] {
            assert_eq!(Hash::from_tag(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_blob_has_the_hash_that_git_gives_it() {
        // `printf 'hello\n' | git hash-object --stdin`
        let hash = Hash::GitBlob("ce013625030ba8dba906f756967f9e9ca394464a".into());
        let mut hasher = hash.hasher(6);
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        assert_eq!(hasher.hex(), hash.hex());
    }
}
