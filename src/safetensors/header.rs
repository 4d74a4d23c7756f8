//! One `.safetensors` file: mapped, its directory read and checked.
//!
//! The header is read by the `safetensors` crate, which checks that every tensor's bytes are its
//! shape's, and that together they fill the file: a range that is here lies in the map.

use crate::gguf::{FileError, map_file};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::{ops::Range, path::Path};

/// One tensor as a file lists it.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    pub name: String,
    pub dtype: Dtype,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Which of the folder's files holds it.
    pub file: usize,
    /// Where in that file.
    pub range: Range<usize>,
}

/// Maps `path`, the folder's file number `file`, and lists its tensors by their place in it.
pub(super) fn read(path: &Path, file: usize) -> Result<(Mmap, Vec<Raw>), FileError> {
    let fail = |what: String| FileError::new(path, what);
    let map = map_file(path)?;
    let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
        fail(format!(
            "not a whole safetensors file (download it again, or compare its checksum): {e}"
        ))
    })?;
    let data = header + 8; // the header's length comes first
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let range = data.saturating_add(start)..data.saturating_add(end);
        if map.get(range.clone()).is_none() {
            return Err(fail(format!("tensor `{name}`: reaches beyond the file")));
        }
        tensors.push(Raw {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            file,
            range,
        });
    }
    tensors.sort_by_key(|tensor| tensor.range.start);
    Ok((map, tensors))
}
