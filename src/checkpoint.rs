//! A model on disk, whatever its form: what every command opens.
//!
//! Opening maps files and reads headers; no weight is touched before [`Checkpoint::load`].

use crate::{
    config::Config,
    gguf::{FileError, Gguf, TensorInfo},
    safetensors::Folder,
    tokenizer::Tokenizer,
    weights::{Check, Model, Tensors},
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
    /// A folder of safetensors: MLX's, or OpenAI's release.
    Folder(Box<Folder>),
}

impl From<Gguf> for Checkpoint {
    fn from(gguf: Gguf) -> Checkpoint {
        Checkpoint::Gguf(gguf)
    }
}

impl Checkpoint {
    /// Opens a GGUF file (any part of a split one opens them all), or a folder of safetensors.
    ///
    /// # Errors
    /// When it can't be read or is damaged: names the file, and what was expected and found.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Ok(match path.is_dir() {
            true => Checkpoint::Folder(Box::new(Folder::open(path)?)),
            false => Checkpoint::Gguf(Gguf::open(path)?),
        })
    }

    /// The file or folder, for messages.
    pub fn path(&self) -> &Path {
        match self {
            Checkpoint::Gguf(gguf) => gguf.path(),
            Checkpoint::Folder(folder) => folder.path(),
        }
    }

    /// The files that hold weights, mapped.
    pub fn files(&self) -> &[(PathBuf, Arc<Mmap>)] {
        match self {
            Checkpoint::Gguf(gguf) => &gguf.files,
            Checkpoint::Folder(folder) => folder.files(),
        }
    }

    /// Bytes of those files.
    pub fn file_bytes(&self) -> u64 {
        self.files().iter().map(|(_, map)| map.len() as u64).sum()
    }

    /// Its tensors under llama.cpp's names; a folder's of the types they are read as.
    pub fn tensors(&self) -> &[TensorInfo] {
        match self {
            Checkpoint::Gguf(gguf) => &gguf.tensors,
            Checkpoint::Folder(folder) => folder.tensors(),
        }
    }

    /// The shape, checked.
    ///
    /// # Errors
    /// Name the file, the key or field, what was expected and what was found.
    pub fn config(&self) -> Result<Config, FileError> {
        match self {
            Checkpoint::Gguf(gguf) => gguf.config(),
            Checkpoint::Folder(folder) => folder.config(),
        }
    }

    /// Its vocabulary, ready to encode and decode.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`]'s or [`Folder::vocabulary`]'s.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        match self {
            Checkpoint::Gguf(gguf) => Tokenizer::from_gguf(gguf),
            Checkpoint::Folder(folder) => folder.tokenizer(),
        }
    }

    /// Whether [`Checkpoint::load`] would succeed, as far as metadata, names, shapes and types tell, and
    /// what it would cost. Reads no weight.
    pub fn check(&self) -> Result<Check> {
        match self {
            Checkpoint::Gguf(gguf) => Model::check(gguf),
            Checkpoint::Folder(folder) => Model::check(&**folder),
        }
    }

    /// Shape and weights. What the user should know about them is told on stderr, before the work is done.
    pub fn load(&self) -> Result<Model> {
        match self {
            Checkpoint::Gguf(gguf) => Model::load(gguf),
            Checkpoint::Folder(folder) => Model::load(&**folder),
        }
    }
}
