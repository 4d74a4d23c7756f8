//! GGUF files: bytes on disk to named tensors, memory-mapped and never copied.
//!
//! Opening reads the header only: metadata stays in the map and is decoded when asked for, weights
//! are not touched. Invariant: every count, length and offset was checked against the file before
//! anything was allocated or read, so accessors can't run past a map.

mod read;
mod split;
mod value;
pub(crate) mod write;

pub use value::{Array, Strings, Value, ValueType, Values};

use memmap2::{Mmap, MmapMut};
use read::{Entry, Header};
use std::{
    collections::HashMap,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Why a model's file can't be read: names the file and the key or tensor, what was expected and found.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {what}")]
pub struct FileError {
    /// The file.
    pub file: String,
    /// What is wrong, and with which key or tensor.
    pub what: String,
}

impl FileError {
    pub(crate) fn new(file: &Path, what: impl Into<String>) -> FileError {
        FileError {
            file: file.display().to_string(),
            // Names from a damaged file could hold what a terminal obeys.
            what: what.into().replace(char::is_control, "\u{fffd}"),
        }
    }
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

/// Bytes that are either a range of a mapping or owned. Cheap to clone.
#[derive(Clone)]
pub enum Bytes {
    /// `range` of a mapping: of the file, or an anonymous one that holds converted weights.
    Mapped(Arc<Mmap>, Range<usize>),
    /// A copy on the heap.
    Owned(Arc<[u8]>),
}

impl Bytes {
    /// The part `range` of these bytes: shared where they are mapped, copied where owned.
    ///
    /// # Panics
    /// When `range` doesn't lie inside.
    pub fn slice(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.len());
        match self {
            Bytes::Mapped(map, whole) => Bytes::Mapped(
                map.clone(),
                whole.start + range.start..whole.start + range.end,
            ),
            Bytes::Owned(bytes) => Bytes::Owned(bytes[range].into()),
        }
    }
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
#[derive(Debug)]
pub struct Gguf {
    /// The files, mapped, in split order.
    pub files: Vec<(PathBuf, Arc<Mmap>)>,
    /// Tensors in file order.
    pub tensors: Vec<TensorInfo>,
    /// Format version, 2 or 3, of the first file.
    pub version: u32,
    /// Alignment of tensor data in the first file.
    pub alignment: usize,
    /// Metadata of the first file, in its order.
    entries: Vec<Entry>,
    /// Index into `tensors` by name.
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Maps and checks the file and, for `-00001-of-0000N.gguf`, its siblings: naming any part opens
    /// them all.
    pub fn open(path: &Path) -> Result<Gguf, FileError> {
        let paths = split::parts(path);
        let mut parts = Vec::new();
        for (i, path) in paths.enumerate() {
            let map = map_file(&path)?;
            parts.push(Part::read(path, Arc::new(map), i)?);
        }
        Gguf::join(parts)
    }

    /// A GGUF held in memory (the embedded demo model), copied to an anonymous mapping.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Gguf, FileError> {
        let path = PathBuf::from(name);
        if bytes.is_empty() {
            return Err(FileError::new(&path, "the file is empty"));
        }
        let map = MmapMut::map_anon(bytes.len()).and_then(|mut map| {
            map.copy_from_slice(bytes);
            map.make_read_only()
        });
        let map = map.map_err(|e| FileError::new(&path, format!("copying it to memory: {e}")))?;
        Gguf::join(vec![Part::read(path, Arc::new(map), 0)?])
    }

    fn join(parts: Vec<Part>) -> Result<Gguf, FileError> {
        split::check(&parts)?;
        let mut files = Vec::new();
        let mut tensors = Vec::new();
        let mut head = None;
        for part in parts {
            files.push((part.path, part.map));
            tensors.extend(part.header.tensors);
            head.get_or_insert((
                part.header.version,
                part.header.alignment,
                part.header.entries,
            ));
        }
        let mut by_name = HashMap::new();
        for (i, tensor) in tensors.iter().enumerate() {
            if by_name.insert(tensor.name.clone(), i).is_some() {
                let what = format!("tensor `{}`: expected once, found again", tensor.name);
                return Err(FileError::new(&files[tensor.file].0, what));
            }
        }
        let (version, alignment, entries) = head.unwrap_or_default();
        Ok(Gguf {
            files,
            tensors,
            version,
            alignment,
            entries,
            by_name,
        })
    }

    /// The first file's path, for messages.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |(path, _)| path)
    }

    /// An error about this model: `what` names the key or tensor, the file is added.
    pub fn error(&self, what: impl Into<String>) -> FileError {
        FileError::new(self.path(), what)
    }

    /// An error about `tensor`, naming it and the file that holds it.
    pub fn tensor_error(&self, tensor: &TensorInfo, what: impl std::fmt::Display) -> FileError {
        let what = format!("tensor `{}`: {what}", tensor.name);
        FileError::new(&self.files[tensor.file].0, what)
    }

    /// A metadata value by full key.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let entry = self.entries.iter().find(|e| e.key == key)?;
        self.value(entry)
    }

    /// All metadata in file order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries
            .iter()
            .filter_map(|e| Some((e.key.as_str(), self.value(e)?)))
    }

    fn value(&self, entry: &Entry) -> Option<Value<'_>> {
        let (_, map) = self.files.first()?;
        let bytes = map.get(entry.range.clone())?;
        if entry.kind == ValueType::Array {
            return value::whole_array(bytes);
        }
        value::decode(entry.kind, bytes).map(|(value, _)| value)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, FileError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let found = || {
            self.error(format!(
                "key `{key}`: expected {expected}, found {}",
                value.describe()
            ))
        };
        convert(value).map(Some).ok_or_else(found)
    }

    /// A string, if the key is there; an error when it is of another type or not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>, FileError> {
        self.typed(key, "a UTF-8 string", |v| v.as_str())
    }

    /// A non-negative integer of any width, if the key is there.
    pub fn u64(&self, key: &str) -> Result<Option<u64>, FileError> {
        self.typed(key, "a non-negative integer", |v| v.as_u64())
    }

    /// A number as f32, if the key is there.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, FileError> {
        self.typed(key, "a number", |v| v.as_f32())
    }

    /// A bool, if the key is there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, FileError> {
        self.typed(key, "a bool", |v| v.as_bool())
    }

    /// The strings of an array, as bytes, if the key is there.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>, FileError> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(a) if a.element == ValueType::String => Some(Strings(a.iter())),
            _ => None,
        })
    }

    /// An array of non-negative integers that fit in u32, if the key is there.
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, FileError> {
        self.typed(
            key,
            "an array of integers from 0 to 4294967295",
            |v| match v {
                Value::Array(a) => a
                    .iter()
                    .map(|v| v.as_u64().and_then(|v| u32::try_from(v).ok()))
                    .collect(),
                _ => None,
            },
        )
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor's bytes, as the file has them.
    pub fn data(&self, tensor: &TensorInfo) -> Bytes {
        let map = self.files[tensor.file].1.clone();
        Bytes::Mapped(map, tensor.offset..tensor.offset + tensor.bytes)
    }
}

/// One mapped file and its header.
struct Part {
    path: PathBuf,
    map: Arc<Mmap>,
    header: Header,
}

impl Part {
    fn read(path: PathBuf, map: Arc<Mmap>, file: usize) -> Result<Part, FileError> {
        let header = read::header(&map, file).map_err(|what| FileError::new(&path, what))?;
        Ok(Part { path, map, header })
    }
}

#[allow(unsafe_code)] // Mapping a file is unsafe by nature; this is the one place.
pub(crate) fn map_file(path: &Path) -> Result<Mmap, FileError> {
    let fail = |e: std::io::Error| FileError::new(path, e.to_string());
    let file = File::open(path).map_err(fail)?;
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() {
        return Err(FileError::new(
            path,
            "expected a file, found a directory or device",
        ));
    }
    if meta.len() == 0 {
        return Err(FileError::new(path, "the file is empty"));
    }
    // SAFETY: the map is read-only, and nothing here assumes more of its bytes than being there. A
    // file that another program shortens while it is mapped ends us with SIGBUS, as it ends every
    // engine that maps weights; downloads replace files by renaming, which leaves a map intact.
    unsafe { Mmap::map(&file) }.map_err(fail)
}

/// Lets go of the pages of `range` that this process holds; reading them again finds them in the page cache, or in
/// the file.
#[cfg(unix)]
#[allow(unsafe_code)]
pub(crate) fn let_go(map: &Mmap, range: &Range<usize>) {
    let advice = memmap2::UncheckedAdvice::DontNeed;
    // SAFETY: `map_file` made the map, shared and never written: such pages come back with the file's contents.
    let done = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
    // A system that won't, keeps them for longer.
    if let Err(error) = done {
        tracing::debug!("pages of a file are kept: {error}");
    }
}

/// Lets go of the pages of `range` that this process holds, where the system has a way.
#[cfg(not(unix))]
pub(crate) fn let_go(_map: &Mmap, _range: &Range<usize>) {}
