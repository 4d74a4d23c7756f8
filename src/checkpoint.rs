//! A model on disk, whatever its form: what every command opens.
//!
//! Opening maps files and reads headers; no weight is touched before [`Checkpoint::load`].

use crate::{
    config::Config,
    gguf::{FileError, Gguf, TensorInfo},
    tokenizer::Tokenizer,
    weights::{Check, Model},
};
use anyhow::Result;
use memmap2::Mmap;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// An open model.
#[derive(Debug)]
pub enum Checkpoint {
    /// A GGUF file, or all parts of a split one.
    Gguf(Gguf),
}

impl From<Gguf> for Checkpoint {
    fn from(gguf: Gguf) -> Checkpoint {
        Checkpoint::Gguf(gguf)
    }
}

impl Checkpoint {
    /// Opens a GGUF file (any part of a split one opens them all).
    ///
    /// # Errors
    /// When it can't be read or is damaged: names the file, and what was expected and found.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Ok(Gguf::open(path)?.into())
    }

    /// The file, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Checkpoint::Gguf(gguf) => gguf.path(),
        }
    }

    /// The files that hold weights, mapped.
    pub fn files(&self) -> &[(PathBuf, Arc<Mmap>)] {
        match self {
            Checkpoint::Gguf(gguf) => &gguf.files,
        }
    }

    /// Bytes of those files.
    pub fn file_bytes(&self) -> u64 {
        self.files().iter().map(|(_, map)| map.len() as u64).sum()
    }

    /// Its tensors under llama.cpp's names.
    pub fn tensors(&self) -> &[TensorInfo] {
        match self {
            Checkpoint::Gguf(gguf) => &gguf.tensors,
        }
    }

    /// The shape, checked.
    ///
    /// # Errors
    /// Name the file, the key, what was expected and what was found.
    pub fn config(&self) -> Result<Config, FileError> {
        match self {
            Checkpoint::Gguf(gguf) => Config::from_gguf(gguf),
        }
    }

    /// Its vocabulary, ready to encode and decode.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`]'s.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match self {
            Checkpoint::Gguf(gguf) => Tokenizer::from_gguf(gguf),
        }
    }

    /// Whether [`Checkpoint::load`] would succeed, as far as metadata, names, shapes and types tell, and
    /// what it would cost. Reads no weight.
    pub fn check(&self) -> Result<Check> {
        match self {
            Checkpoint::Gguf(gguf) => Model::check(gguf),
        }
    }

    /// Shape and weights. What the user should know about them is told on stderr, before the work is done.
    pub fn load(&self) -> Result<Model> {
        match self {
            Checkpoint::Gguf(gguf) => Model::load(gguf),
        }
    }
}
