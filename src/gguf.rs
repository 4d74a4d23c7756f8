//! GGUF files: bytes on disk to named tensors, memory-mapped and never copied.
//!
//! Every count, length and offset is checked against the file before anything is allocated or read.

use memmap2::Mmap;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why a GGUF file can't be read: names the file and the key or tensor, what was expected and found.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {what}")]
pub struct GgufError {
    /// The file.
    pub file: String,
    /// What is wrong, and with which key or tensor.
    pub what: String,
}

/// A metadata value. Arrays of strings and numbers stay in the mapped file.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any unsigned integer type.
    U64(u64),
    /// Any signed integer type.
    I64(i64),
    /// f32 or f64.
    F64(f64),
    /// A bool.
    Bool(bool),
    /// A string; GGUF strings are UTF-8 by convention only.
    Str(String),
    /// An array.
    Array(Vec<Value>),
}

/// One tensor of the directory.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Its name, `blk.0.attn_q.weight`.
    pub name: String,
    /// Dimensions, innermost first, as the file writes them.
    pub dims: Vec<u64>,
    /// Element or block type.
    pub kind: crate::quant::GgmlType,
    /// Which split file holds it.
    pub file: usize,
    /// Absolute offset in that file.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

/// Bytes that are either a range of a mapped file or owned (converted at load). Cheap to clone.
#[derive(Clone)]
pub enum Bytes {
    /// `range` of a mapping.
    Mapped(Arc<Mmap>, std::ops::Range<usize>),
    /// A converted copy.
    Owned(Arc<[u8]>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map, range) => &map[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// An open GGUF model: one file, or the parts of a split one.
pub struct Gguf {
    /// The files, mapped, in split order.
    pub files: Vec<(PathBuf, Arc<Mmap>)>,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
}

impl Gguf {
    /// Maps and checks the file (and, for `-00001-of-0000N.gguf`, its siblings).
    pub fn open(_path: &Path) -> Result<Gguf, GgufError> {
        unimplemented!()
    }
    /// A GGUF held in memory (the embedded demo model), copied to an anonymous mapping.
    pub fn from_bytes(_name: &str, _bytes: &[u8]) -> Result<Gguf, GgufError> {
        unimplemented!()
    }
    /// A metadata value by full key.
    pub fn get(&self, _key: &str) -> Option<&Value> {
        unimplemented!()
    }
    /// A tensor by name.
    pub fn tensor(&self, _name: &str) -> Option<&TensorInfo> {
        unimplemented!()
    }
    /// A tensor's bytes.
    pub fn data(&self, _tensor: &TensorInfo) -> Bytes {
        unimplemented!()
    }
}
