//! A folder of safetensors to a GGUF file, tensor by tensor: no more than one piece of one tensor is in
//! memory at a time, and every value is the folder's but where rounding was asked for.

use crate::{
    gguf::{
        TensorInfo,
        write::{self, ALIGNMENT, Directory, Metadata},
    },
    safetensors::{Encoding, Folder, Lists},
    synth::header::size_label,
    weights::Tensors,
};
use anyhow::Result;
use std::{collections::BTreeMap, fs::File, io::Write, path::Path};

/// Bytes written at a time, about.
const PIECE: usize = 16 << 20;

/// A GGUF file to be.
pub struct Conversion<'a> {
    folder: &'a Folder,
    front: Vec<u8>,
    /// In the folder's order: what it becomes, how many bytes.
    tensors: Vec<(&'a TensorInfo, Encoding, u64)>,
    /// What the user should know about the result.
    pub notes: Vec<String>,
}

/// Matrices of one form that take more in the file.
#[derive(Default)]
struct Widened {
    tensors: usize,
    from: u64,
    to: u64,
    /// The largest change of a value, and the largest value.
    error: f32,
    largest: f32,
}

impl<'a> Conversion<'a> {
    /// Reads scales and vocabulary, and lays the file out. With `round`, values that only F32 could hold are
    /// rounded to F16.
    ///
    /// # Errors
    /// When the vocabulary can't be read or a scale isn't finite.
    pub fn new(folder: &'a Folder, round: bool) -> Result<Conversion<'a>> {
        let mut tensors = Vec::new();
        let mut directory = Directory::default();
        let mut at = 0;
        for info in folder.tensors() {
            let encoding = folder.encoding(info, round)?;
            let values: u64 = info.dims.iter().product();
            let kind = encoding.kind;
            let bytes = values / kind.block_values() as u64 * kind.block_bytes() as u64;
            directory.push(&info.name, &info.dims, kind as u32, at);
            at += bytes.next_multiple_of(ALIGNMENT);
            tensors.push((info, encoding, bytes));
        }
        let lists = folder.vocabulary()?;
        // Wrong tokens or merges are told now, not by whoever opens the file.
        folder.tokenizer()?;
        let metadata = metadata(folder, &lists)?;
        let mut conversion = Conversion {
            folder,
            front: write::front(metadata, directory),
            tensors,
            notes: Vec::new(),
        };
        conversion.notes = conversion.notes();
        Ok(conversion)
    }

    /// Size of the file.
    pub fn file_bytes(&self) -> u64 {
        let padded = |bytes: u64| bytes.next_multiple_of(ALIGNMENT);
        self.front.len() as u64 + self.tensors.iter().map(|t| padded(t.2)).sum::<u64>()
    }

    /// Number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Writes the file under a temporary name and renames it when it is whole; `progress` hears the number of
    /// bytes just written.
    ///
    /// # Errors
    /// When the disk has too little space, a value isn't finite, or writing fails; the temporary file is
    /// removed.
    pub fn write(&self, path: &Path, progress: impl Fn(u64)) -> Result<()> {
        write::replace(path, self.file_bytes(), |partial| {
            let mut file = File::create(partial)?;
            file.write_all(&self.front)?;
            progress(self.front.len() as u64);
            let mut piece = Vec::new();
            for &(info, encoding, bytes) in &self.tensors {
                let rows: usize = info.dims.iter().skip(1).product::<u64>() as usize;
                let row_bytes = bytes as usize / rows;
                let at_once = (PIECE / row_bytes.max(1)).max(1);
                for first in (0..rows).step_by(at_once) {
                    let rows = first..rows.min(first + at_once);
                    piece.resize(rows.len() * row_bytes, 0);
                    self.folder.encode(info, encoding.kind, rows, &mut piece)?;
                    file.write_all(&piece)?;
                    progress(piece.len() as u64);
                }
                let padding = bytes.next_multiple_of(ALIGNMENT) - bytes;
                file.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
                progress(padding);
            }
            Ok(file.sync_all()?)
        })
    }

    /// What differs from the folder, or grew.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let mut widened: BTreeMap<(String, &str), Widened> = BTreeMap::new();
        for ((info, encoding, bytes), (_, _, form)) in
            self.tensors.iter().zip(self.folder.listing())
        {
            // Exact where the router and vectors become F32: nothing to tell.
            if form.starts_with("affine") && info.kind != encoding.kind {
                let sum = widened.entry((form, encoding.kind.name())).or_default();
                let (error, largest) = encoding.rounding.unwrap_or_default();
                sum.tensors += 1;
                sum.from += info.bytes as u64;
                sum.to += bytes;
                (sum.error, sum.largest) = (sum.error.max(error), sum.largest.max(largest));
            }
        }
        for ((form, kind), sum) in widened {
            let loss = if sum.error > 0.0 {
                let (error, largest) = (sum.error, sum.largest);
                format!("rounded by at most {error:.1e} (the largest value is {largest:.1e})")
            } else {
                "exact".to_owned()
            };
            notes.push(format!(
                "{} {form} matrices have scales and biases that no Q8_0 block can hold: as {kind}, {loss}, \
                 {:.2} GB become {:.2} GB{}",
                sum.tensors,
                sum.from as f64 / 1e9,
                sum.to as f64 / 1e9,
                if kind == "F32" { "; --f16 rounds them to half of that" } else { "" },
            ));
        }
        if self.folder.config().is_ok_and(|config| config.rope.rounded) {
            let note = "config.json rounds YaRN's range (`truncate`), which GGUF has no key for: run the file with \
                        --rope-compat";
            notes.push(note.to_owned());
        }
        notes
    }
}

/// All keys, as llama.cpp's converter orders them.
fn metadata(folder: &Folder, lists: &Lists) -> Result<Metadata> {
    let config = folder.config()?;
    let mut keys = Metadata::default();
    keys.string("general.architecture", "gpt-oss");
    keys.string("general.type", "model");
    keys.string("general.name", &config.name);
    keys.string("general.size_label", &size_label(&config));
    keys.shape(&config);
    keys.u32("general.file_type", 38); // mostly MXFP4
    keys.vocabulary(&lists.tokens, &lists.kinds, lists.merges.iter());
    let ids = [
        ("tokenizer.ggml.bos_token_id", lists.bos),
        ("tokenizer.ggml.eos_token_id", lists.stops.first().copied()),
        ("tokenizer.ggml.padding_token_id", lists.pad),
    ];
    for (key, id) in ids {
        if let Some(id) = id {
            keys.u32(key, id as usize);
        }
    }
    if let Some(template) = folder.chat_template()? {
        keys.string("tokenizer.chat_template", &template);
    }
    keys.u32("general.quantization_version", 2);
    Ok(keys)
}
