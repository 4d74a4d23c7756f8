//! Reads the header of one GGUF file: metadata entries and the tensor directory.
//!
//! Invariant: whatever this returns lies inside the file. Errors are sentences without the file's
//! name, which the caller adds.

use super::{TensorInfo, value::ValueType};
use crate::quant::GgmlType;
use std::{collections::HashSet, ops::Range};

/// Most metadata entries and tensors taken for real: a hundred times those of gpt-oss-120b. With
/// the file's size they bound what a hostile header can make us allocate.
const MOST_ENTRIES: usize = 1 << 16;
/// Longest key or tensor name.
const LONGEST_NAME: usize = 1 << 12;
/// Deepest nesting of arrays in arrays.
const DEEPEST_ARRAY: usize = 8;
/// Alignment of tensor data where `general.alignment` doesn't say.
const DEFAULT_ALIGNMENT: usize = 32;

/// A metadata entry: where its value lies in the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub kind: ValueType,
    /// The value's bytes; for an array from its element type on.
    pub range: Range<usize>,
}

/// What the head of one file says.
pub(super) struct Header {
    pub version: u32,
    pub alignment: usize,
    pub entries: Vec<Entry>,
    pub tensors: Vec<TensorInfo>,
}

/// Walks the bytes of a file, never past their end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..n).ok_or_else(|| {
            format!(
                "{what}: expected {n} bytes at byte {}, found {}: the file is truncated or damaged",
                self.at,
                rest.len()
            )
        })?;
        self.at += n;
        Ok(taken)
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        let b = self.take(8, what)?;
        Ok(u64::from_le_bytes([
            b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7],
        ]))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: usize, what: &str) -> Result<usize, String> {
        let count = self.u64(what)?;
        let room = self.bytes.len() - self.at;
        match usize::try_from(count) {
            Ok(n) if n <= room / least => Ok(n),
            _ => Err(format!(
                "{what}: found {count}, but the {room} bytes left in the file hold at most {}",
                room / least
            )),
        }
    }

    fn name(&mut self, what: &str) -> Result<&'a str, String> {
        let at = self.at;
        let len = self.count(1, &format!("length of {what}"))?;
        if len > LONGEST_NAME {
            return Err(format!(
                "length of {what}: expected at most {LONGEST_NAME}, found {len}"
            ));
        }
        std::str::from_utf8(self.take(len, what)?)
            .map_err(|_| format!("{what} at byte {at}: expected UTF-8, found other bytes"))
    }
}

/// Bytes of `len` elements at the front of `bytes`, or what is wrong with them.
pub(super) fn array_extent(
    element: ValueType,
    len: usize,
    bytes: &[u8],
    depth: usize,
) -> Result<usize, String> {
    if len > bytes.len() / element.least_bytes() {
        return Err(format!(
            "an array of {len} {}: the {} bytes left in the file hold at most {}",
            element.name(),
            bytes.len(),
            bytes.len() / element.least_bytes()
        ));
    }
    if let Some(size) = element.fixed_bytes() {
        return Ok(len * size);
    }
    let mut cursor = Cursor { bytes, at: 0 };
    for _ in 0..len {
        skip(&mut cursor, element, depth)?;
    }
    Ok(cursor.at)
}

/// Steps over one value, checking every length in it.
fn skip(cursor: &mut Cursor<'_>, kind: ValueType, depth: usize) -> Result<(), String> {
    match kind {
        ValueType::String => {
            let len = cursor.count(1, "length of a string")?;
            cursor.at += len;
        }
        ValueType::Array => {
            if depth >= DEEPEST_ARRAY {
                return Err(format!("arrays nested deeper than {DEEPEST_ARRAY}"));
            }
            let element = value_type(cursor.u32("element type of an array")?)?;
            let len = cursor.count(element.least_bytes(), "length of an array")?;
            cursor.at += array_extent(element, len, &cursor.bytes[cursor.at..], depth + 1)?;
        }
        fixed => {
            cursor.take(fixed.least_bytes(), "a value")?;
        }
    }
    Ok(())
}

fn value_type(id: u32) -> Result<ValueType, String> {
    ValueType::from_id(id).ok_or_else(|| format!("value type: expected 0 to 12, found {id}"))
}

/// Reads the header of the file `bytes`; `file` is its number among the parts.
pub(super) fn header(bytes: &[u8], file: usize) -> Result<Header, String> {
    let mut cursor = Cursor { bytes, at: 0 };
    let magic = cursor.take(4, "magic")?;
    if magic != b"GGUF" {
        return Err(format!(
            "not a GGUF file: expected it to start with \"GGUF\", found {:?}",
            String::from_utf8_lossy(magic)
        ));
    }
    let version = cursor.u32("version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 1..=3) => {
            return Err("a big-endian GGUF file: only little-endian ones can be read".into());
        }
        _ => return Err(format!("GGUF version: expected 2 or 3, found {version}")),
    }
    let tensor_count = cursor.count(24, "tensor count")?;
    let entry_count = cursor.count(13, "metadata count")?;
    for (what, count) in [("tensor", tensor_count), ("metadata", entry_count)] {
        if count > MOST_ENTRIES {
            return Err(format!(
                "{what} count: expected at most {MOST_ENTRIES}, found {count}"
            ));
        }
    }
    let entries = entries(&mut cursor, entry_count)?;
    let alignment = alignment(&entries, bytes)?;
    let mut tensors = tensors(&mut cursor, tensor_count, file)?;
    place(
        &mut tensors,
        cursor.at.next_multiple_of(alignment),
        alignment,
        bytes.len(),
    )?;
    Ok(Header {
        version,
        alignment,
        entries,
        tensors,
    })
}

fn entries(cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    for i in 0..count {
        let key = cursor.name(&format!("key of metadata entry {i}"))?;
        if !seen.insert(key) {
            return Err(format!("key `{key}`: expected once, found again"));
        }
        let in_key = |e: String| format!("key `{key}`: {e}");
        let kind = value_type(cursor.u32("value type").map_err(in_key)?).map_err(in_key)?;
        let start = cursor.at;
        skip(cursor, kind, 0).map_err(in_key)?;
        entries.push(Entry {
            key: key.to_owned(),
            kind,
            range: start..cursor.at,
        });
    }
    Ok(entries)
}

fn alignment(entries: &[Entry], bytes: &[u8]) -> Result<usize, String> {
    let Some(entry) = entries.iter().find(|e| e.key == "general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT);
    };
    let value = super::value::decode(entry.kind, &bytes[entry.range.clone()]);
    let value = value.and_then(|(v, _)| v.as_u64()).unwrap_or(0);
    match usize::try_from(value) {
        Ok(n) if n.is_power_of_two() && n <= 1 << 20 => Ok(n),
        _ => Err(format!(
            "key `general.alignment`: expected a power of two of at most 1048576, found {value}"
        )),
    }
}

/// Reads the tensor directory; `offset` is still relative to the data's start.
fn tensors(cursor: &mut Cursor<'_>, count: usize, file: usize) -> Result<Vec<TensorInfo>, String> {
    let mut tensors: Vec<TensorInfo> = Vec::new();
    for i in 0..count {
        let name = cursor.name(&format!("name of tensor {i}"))?;
        let in_tensor = |e: String| format!("tensor `{name}`: {e}");
        tensors.push(tensor(cursor, name, file).map_err(in_tensor)?);
    }
    Ok(tensors)
}

fn tensor(cursor: &mut Cursor<'_>, name: &str, file: usize) -> Result<TensorInfo, String> {
    let n_dims = cursor.u32("number of dimensions")?;
    if !(1..=4).contains(&n_dims) {
        return Err(format!(
            "number of dimensions: expected 1 to 4, found {n_dims}"
        ));
    }
    let mut dims = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        dims.push(cursor.u64("dimensions")?);
    }
    let id = cursor.u32("type")?;
    let kind = GgmlType::from_id(id)
        .ok_or_else(|| format!("type: expected one that ggml defines, found id {id}"))?;
    let offset = cursor.u64("offset")?;
    let values = dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))
        .filter(|&n| n > 0)
        .ok_or_else(|| format!("dimensions: found {dims:?}, no size a tensor can have"))?;
    let block = kind.block_values() as u64;
    if dims[0] % block != 0 {
        return Err(format!(
            "first dimension: expected a multiple of {block} for {kind}, found {}",
            dims[0]
        ));
    }
    let bytes = kind
        .bytes_for(values)
        .ok_or_else(|| format!("dimensions: found {dims:?}, more than can be addressed"))?;
    let offset = usize::try_from(offset)
        .map_err(|_| format!("offset: found {offset}, more than can be addressed"))?;
    Ok(TensorInfo {
        name: name.to_owned(),
        dims,
        kind,
        file,
        offset,
        bytes,
    })
}

/// Makes offsets absolute; checks that tensors are aligned, inside the file and apart.
fn place(
    tensors: &mut [TensorInfo],
    data: usize,
    alignment: usize,
    file_bytes: usize,
) -> Result<(), String> {
    for t in tensors.iter_mut() {
        if !t.offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor `{}`: offset: expected a multiple of {alignment}, found {}",
                t.name, t.offset
            ));
        }
        let start = data.checked_add(t.offset);
        match start.and_then(|s| s.checked_add(t.bytes)) {
            Some(end) if end <= file_bytes => t.offset += data,
            _ => {
                return Err(format!(
                    "tensor `{}`: expected {} bytes at byte {data} + {}, found a file of \
                     {file_bytes} bytes: it is truncated or damaged, download it again",
                    t.name, t.bytes, t.offset
                ));
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_unstable_by_key(|t| t.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(format!(
                "tensor `{}`: its bytes {}..{} overlap tensor `{}` at byte {}",
                pair[0].name,
                pair[0].offset,
                pair[0].offset + pair[0].bytes,
                pair[1].name,
                pair[1].offset
            ));
        }
    }
    Ok(())
}
