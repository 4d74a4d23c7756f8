//! Verdicts that were found on this machine: what `--backend auto` asks.
//!
//! One small JSON file in the user's folder for a program's state. A model is known by what is in its files, not
//! by their names; a machine by its processor. A file that can't be read counts as empty.

use crate::{checkpoint::Checkpoint, machine};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Bytes read at each of [`SAMPLES`] places of a file.
const SAMPLE: usize = 4096;
const SAMPLES: usize = 16;

/// One verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// The back end to use, as after `--backend`.
    pub backend: String,
    /// Why.
    pub why: String,
    /// The model's file, for people who read this.
    pub model: String,
}

/// The verdicts by model and machine.
pub struct Verdicts {
    path: PathBuf,
    all: BTreeMap<String, Stored>,
}

impl Verdicts {
    /// Those of this user; `None` where there is no folder for them.
    pub fn open() -> Option<Verdicts> {
        Some(Verdicts::at(
            &machine::state_folder()?.join("verdicts.json"),
        ))
    }

    fn at(path: &Path) -> Verdicts {
        let text = fs::read(path).unwrap_or_default();
        Verdicts {
            path: path.into(),
            all: serde_json::from_slice(&text).unwrap_or_default(),
        }
    }

    /// The one for this model on this machine.
    pub fn get(&self, model: &Checkpoint) -> Option<&Stored> {
        self.all.get(&key(model))
    }

    /// Stores one.
    pub fn set(&mut self, model: &Checkpoint, verdict: Stored) -> Result<()> {
        self.all.insert(key(model), verdict);
        self.write()
    }

    /// Forgets the one for this model, or says that there is none.
    pub fn forget(&mut self, model: &Checkpoint) -> Result<bool> {
        let known = self.all.remove(&key(model)).is_some();
        if known {
            self.write()?;
        }
        Ok(known)
    }

    /// Forgets all, and says how many there were.
    pub fn forget_all(&mut self) -> Result<usize> {
        let known = std::mem::take(&mut self.all).len();
        if known > 0 {
            self.write()?;
        }
        Ok(known)
    }

    fn write(&self) -> Result<()> {
        let writing = || format!("write {}", self.path.display());
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(writing)?;
        // Another program may write at the same time: the last one's file is whole.
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(writing)?;
        serde_json::to_writer_pretty(&mut file, &self.all)?;
        file.persist(&self.path).with_context(writing)?;
        Ok(())
    }
}

/// What is in the files, and what computes here.
fn key(model: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    for (_, map) in model.files() {
        hash.update((map.len() as u64).to_le_bytes());
        for sample in 0..SAMPLES {
            let start = map.len() / SAMPLES * sample;
            hash.update(&map[start..(start + SAMPLE).min(map.len())]);
        }
    }
    hash.update(machine::cpu_name().unwrap_or_default());
    let hash = hash.finalize();
    hash[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;

    const DEMO: &[u8] = include_bytes!("../../../models/demo/demo.gguf");

    fn model(bytes: &[u8]) -> Checkpoint {
        Gguf::from_bytes("x.gguf", bytes).unwrap().into()
    }

    #[test]
    fn verdicts_belong_to_what_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state").join("verdicts.json");
        let demo = model(DEMO);
        let mut other = DEMO.to_vec();
        let middle = other.len() / SAMPLES * 9;
        other[middle] ^= 1;
        let other = model(&other);
        let verdict = Stored {
            backend: "cpu".into(),
            why: "because".into(),
            model: "x.gguf".into(),
        };
        let mut verdicts = Verdicts::at(&path);
        assert_eq!(verdicts.get(&demo), None);
        verdicts.set(&demo, verdict.clone()).unwrap();
        let mut again = Verdicts::at(&path);
        assert_eq!(again.get(&demo), Some(&verdict));
        assert_eq!(again.get(&other), None);
        assert!(!again.forget(&other).unwrap());
        assert!(again.forget(&demo).unwrap());
        assert_eq!(Verdicts::at(&path).get(&demo), None);
        verdicts.set(&other, verdict).unwrap();
        assert_eq!(Verdicts::at(&path).forget_all().unwrap(), 2);
        fs::write(&path, "{{{").unwrap();
        assert_eq!(Verdicts::at(&path).forget_all().unwrap(), 0);
    }
}
