//! JSON files of a folder, of bounded size.

use crate::gguf::FileError;
use serde::de::DeserializeOwned;
use std::{fs::File, io::Read, path::Path};

/// Reads `path`, if it has no more than `most` bytes.
pub(super) fn read<T: DeserializeOwned>(path: &Path, most: u64) -> Result<T, FileError> {
    let bytes = bytes(path, most)?;
    serde_json::from_slice(&bytes).map_err(|e| FileError::new(path, e.to_string()))
}

/// Reads a text file of no more than `most` bytes.
pub(super) fn text(path: &Path, most: u64) -> Result<String, FileError> {
    let text = String::from_utf8(bytes(path, most)?);
    text.map_err(|e| FileError::new(path, e.to_string()))
}

fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, FileError> {
    let fail = |e: &dyn std::fmt::Display| FileError::new(path, e.to_string());
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| fail(&e))?;
    file.take(most + 1)
        .read_to_end(&mut text)
        .map_err(|e| fail(&e))?;
    if text.len() as u64 > most {
        return Err(fail(&format!("expected at most {most} bytes, found more")));
    }
    Ok(text)
}

/// A value for a message: its beginning.
pub(super) fn short(value: &serde_json::Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
