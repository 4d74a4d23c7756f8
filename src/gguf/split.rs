//! Split models: `NAME-00001-of-0000N.gguf` and so on, one header each, metadata in the first.

use super::{FileError, Part, value};
use std::path::{Path, PathBuf};

/// The part number and count that a file's name ends with.
fn numbers(path: &Path) -> Option<(&str, usize, usize)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| {
        let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse().ok())?
    };
    let (number, count) = (parse(number)?, parse(count)?);
    (1..=count)
        .contains(&number)
        .then_some((name, number, count))
}

/// The paths of all parts of the model that `path` belongs to; `path` alone when its name doesn't
/// say that it is split.
pub(super) fn parts(path: &Path) -> impl Iterator<Item = PathBuf> {
    let (name, count) = match numbers(path) {
        Some((name, _, count)) => (Some(name.to_owned()), count),
        None => (None, 1),
    };
    let path = path.to_owned();
    (1..=count).map(move |number| match &name {
        Some(name) => path.with_file_name(format!("{name}-{number:05}-of-{count:05}.gguf")),
        None => path.clone(),
    })
}

/// Checks that the parts say of themselves what their names say.
pub(super) fn check(parts: &[Part]) -> Result<(), FileError> {
    for (number, part) in parts.iter().enumerate() {
        let expect = |key: &str, absent: usize, expected: usize| {
            let found = part.number(key)?.unwrap_or(absent as u64);
            if found == expected as u64 {
                return Ok(());
            }
            let advice = if parts.len() == 1 {
                ": a part of a split model; keep its name, NAME-00001-of-0000N.gguf, and its \
                 siblings beside it"
            } else {
                ": its parts don't belong together"
            };
            let what = format!("key `{key}`: expected {expected}, found {found}{advice}");
            Err(FileError::new(&part.path, what))
        };
        expect("split.count", 1, parts.len())?;
        expect("split.no", 0, number)?;
    }
    if let Some(first) = parts.first() {
        let total: usize = parts.iter().map(|p| p.header.tensors.len()).sum();
        let expected = first.number("split.tensors.count")?.unwrap_or(total as u64);
        if expected != total as u64 {
            let what = format!(
                "key `split.tensors.count`: expected {expected} tensors in all parts, found {total}"
            );
            return Err(FileError::new(&first.path, what));
        }
    }
    Ok(())
}

impl Part {
    /// A non-negative integer of this part's own metadata.
    fn number(&self, key: &str) -> Result<Option<u64>, FileError> {
        let Some(entry) = self.header.entries.iter().find(|e| e.key == key) else {
            return Ok(None);
        };
        let value = self.map.get(entry.range.clone());
        let value = value.and_then(|bytes| value::decode(entry.kind, bytes));
        match value.and_then(|(value, _)| value.as_u64()) {
            Some(number) => Ok(Some(number)),
            None => Err(FileError::new(
                &self.path,
                format!("key `{key}`: expected a non-negative integer, found another type"),
            )),
        }
    }
}
