//! Verdicts that were found on this machine: what `--backend auto` asks.
//!
//! One small JSON file in the user's folder for a program's state. A model is known by what is in its files, not
//! by their names; a machine by its processor and GPUs. A file that can't be read, another version's too, counts as empty.

use crate::{backend::Target, checkpoint::Checkpoint, machine};
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

/// What was found about one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// Its file or folder, for people who read this.
    pub model: String,
    /// The back end to use for it.
    pub best: Option<Best>,
    /// Another file that was better than this one.
    pub other: Option<Other>,
}

/// The best back end of those that were compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// As after `--backend`.
    pub backend: String,
    /// By which figures.
    pub why: String,
}

/// A better file or folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// As after `--model`, from any folder.
    pub model: String,
    /// What it was measured with, as after `--backend`.
    pub backend: String,
    /// By which figures it was better.
    pub why: String,
}

impl Stored {
    /// Whether `backend` was found best.
    pub fn is_best(&self, backend: &str) -> bool {
        self.best
            .as_ref()
            .is_some_and(|best| best.backend == backend)
    }

    /// What to tell who leaves the back end open: which one is taken, and where there is something better.
    pub fn advice(&self) -> Option<String> {
        const FORGET: &str = "`gossamer compare --forget` forgets it";
        let best = self.best.as_ref().map(|best| {
            let (backend, why) = (&best.backend, &best.why);
            format!(
                "back end {backend}, as `gossamer compare` found on this machine ({why}; {FORGET})"
            )
        });
        // What is gone is no advice.
        let gone = |path: &Path| path.is_absolute() && !path.exists();
        let other = self.other.as_ref().filter(|o| !gone(Path::new(&o.model)));
        let other = other.map(|other| {
            let (model, why) = (&other.model, &other.why);
            let flag = match &*other.backend {
                "auto" => String::new(),
                backend => format!(" --backend {backend}"),
            };
            format!("--model {model}{flag} was better ({why})")
        });
        match (best, other) {
            (Some(best), Some(other)) => Some(format!("{best}; {other}")),
            (None, Some(other)) => Some(format!(
                "`gossamer compare` found on this machine: {other}; {FORGET}"
            )),
            (best, None) => best,
        }
    }
}

/// The verdicts by model and machine.
pub struct Verdicts {
    path: PathBuf,
    /// What computes on it: the processor and the GPUs, also those that only MLX can use in this build.
    machine: String,
    all: BTreeMap<String, Stored>,
}

impl Verdicts {
    /// Those of this user; `None` where there is no folder for them.
    pub fn open() -> Option<Verdicts> {
        let path = machine::state_folder()?.join("verdicts.json");
        let names = machine::cpu_name().into_iter();
        let names = names.chain(machine::nvidia_names());
        let usable = Target::gpu_names().into_iter();
        // Another build can't follow what this one found of them.
        let names = names.chain(usable.map(|gpu| format!("cuda {gpu}")));
        let machine = names.collect::<Vec<_>>().join("; ");
        Some(Verdicts::at(&path, &machine))
    }

    fn at(path: &Path, machine: &str) -> Verdicts {
        let text = fs::read(path).unwrap_or_default();
        Verdicts {
            path: path.into(),
            machine: machine.into(),
            all: serde_json::from_slice(&text).unwrap_or_default(),
        }
    }

    /// The one for this model on this machine.
    pub fn get(&self, model: &Checkpoint) -> Option<&Stored> {
        self.all.get(&self.key(model))
    }

    /// Stores one.
    pub fn set(&mut self, model: &Checkpoint, verdict: Stored) -> Result<()> {
        self.all.insert(self.key(model), verdict);
        self.write()
    }

    /// Forgets the one for this model, or says that there is none.
    pub fn forget(&mut self, model: &Checkpoint) -> Result<bool> {
        let known = self.all.remove(&self.key(model)).is_some();
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

    /// What is in the files, and what computes here.
    pub fn key(&self, model: &Checkpoint) -> String {
        let mut hash = Sha256::new();
        for (_, map) in model.files() {
            hash.update((map.len() as u64).to_le_bytes());
            for sample in 0..SAMPLES {
                let start = map.len() / SAMPLES * sample;
                hash.update(&map[start..(start + SAMPLE).min(map.len())]);
            }
        }
        hash.update(&self.machine);
        let hash = hash.finalize();
        hash[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
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
            model: "x.gguf".into(),
            best: Some(Best {
                backend: "cpu".into(),
                why: "because".into(),
            }),
            other: None,
        };
        let mut verdicts = Verdicts::at(&path, "a processor");
        assert_eq!(verdicts.get(&demo), None);
        verdicts.set(&demo, verdict.clone()).unwrap();
        let mut again = Verdicts::at(&path, "a processor");
        assert_eq!(again.get(&demo), Some(&verdict));
        assert_eq!(again.get(&other), None);
        let elsewhere = Verdicts::at(&path, "another processor");
        assert_eq!(elsewhere.get(&demo), None);
        assert!(!again.forget(&other).unwrap());
        assert!(again.forget(&demo).unwrap());
        assert_eq!(Verdicts::at(&path, "a processor").get(&demo), None);
        verdicts.set(&other, verdict).unwrap();
        assert_eq!(Verdicts::at(&path, "a processor").forget_all().unwrap(), 2);
        fs::write(&path, "{{{").unwrap();
        assert_eq!(Verdicts::at(&path, "a processor").forget_all().unwrap(), 0);
    }

    #[test]
    fn advice_is_one_line_and_names_only_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let best = Best {
            backend: "cpu".into(),
            why: "p".into(),
        };
        let other = |model: &str, backend: &str| {
            Some(Other {
                model: model.into(),
                backend: backend.into(),
                why: "q".into(),
            })
        };
        let advice = |best: Option<&Best>, other| {
            let stored = Stored {
                model: "m".into(),
                best: best.cloned(),
                other,
            };
            stored.advice().unwrap_or_default()
        };
        assert_eq!(advice(None, None), "");
        let both = advice(Some(&best), other(path, "mlx"));
        assert!(both.starts_with("back end cpu, as") && both.contains("(p; "));
        assert!(both.ends_with(&format!("--model {path} --backend mlx was better (q)")));
        let named = advice(None, other("gpt-oss-20b", "auto"));
        assert!(
            named.contains(": --model gpt-oss-20b was better (q); `gossamer compare --forget`")
        );
        let gone = folder.path().join("gone");
        assert_eq!(advice(None, other(gone.to_str().unwrap(), "mlx")), "");
    }
}
