//! A folder of safetensors, as MLX's converters and OpenAI's own release are published: read as the GGUF
//! file that `gossamer convert` would write from it, with the same names, shapes and values.
//!
//! Opening reads config.json and the headers. Weights that are floats stay in the map; MXFP4 and affine
//! matrices are rearranged at load, on all cores, into memory of their own. Invariant: a [`Folder`] that is
//! open holds every tensor of its shape, none besides, and each of just the bytes that its form implies.

mod header;
mod json;
mod layout;
mod parallel;
mod repack;
mod settings;
mod source;
mod vocabulary;

use crate::{
    config::Config,
    gguf::{Bytes, FileError, TensorInfo},
    tokenizer::Tokenizer,
    weights::{Matrix, Tensors},
};
use layout::Tensor;
use memmap2::Mmap;
use safetensors::Dtype;
use settings::Settings;
use source::{Part, Source, Stride};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use repack::Encoding;
pub use vocabulary::Lists;

/// Most files that a folder's weights may be spread over.
const MOST_FILES: usize = 1000;

/// An open folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    settings: Settings,
    config: Config,
    files: Vec<(PathBuf, Arc<Mmap>)>,
    /// As [`Folder::sources`] has them.
    infos: Vec<TensorInfo>,
    sources: Vec<Tensor>,
    /// Index by GGUF name.
    by_name: HashMap<String, usize>,
}

impl Folder {
    /// Opens the folder at `path`: reads config.json and the headers of its weights.
    ///
    /// # Errors
    /// When it isn't a gpt-oss model in one of the two layouts, or a file is damaged or missing: names the
    /// file and the field or tensor, and what was expected and found.
    pub fn open(path: &Path) -> Result<Folder, FileError> {
        let settings = Settings::read(path)?;
        let config = settings.config()?;
        let paths = weight_files(path)?;
        let (mut files, mut raw) = (Vec::new(), Vec::new());
        for (i, path) in paths.iter().enumerate() {
            let (map, tensors) = header::read(path, i)?;
            files.push((path.clone(), Arc::new(map)));
            raw.extend(tensors);
        }
        let sources = layout::tensors(&settings, &config, &paths, &raw)?;
        let infos: Vec<TensorInfo> = sources.iter().map(|t| t.info.clone()).collect();
        let names = infos.iter().enumerate();
        Ok(Folder {
            path: path.to_path_buf(),
            by_name: names.map(|(i, info)| (info.name.clone(), i)).collect(),
            settings,
            config,
            files,
            infos,
            sources,
        })
    }

    /// The files that hold weights, mapped.
    pub fn files(&self) -> &[(PathBuf, Arc<Mmap>)] {
        &self.files
    }

    /// Bytes of all weights where floats take `float` bytes each (`None`: as many as in the files) and integers
    /// what they take there.
    pub fn bytes_with(&self, float: Option<u64>) -> u64 {
        let parts = self.sources.iter().flat_map(|t| t.source.parts());
        // Rows of two tensors may take turns in one part.
        let parts: HashMap<_, _> = parts.map(|p| ((p.file, p.range.start), p)).collect();
        let held = parts.values().map(|part| {
            let bytes = part.range.len() as u64;
            let own = match part.dtype {
                Dtype::BF16 | Dtype::F16 => 2,
                Dtype::F32 => 4,
                _ => return bytes,
            };
            bytes / own * float.unwrap_or(own)
        });
        held.sum()
    }

    /// Every tensor with its name in the folder and its form there, such as `affine8/64`.
    pub fn listing(&self) -> impl Iterator<Item = (&TensorInfo, &str, String)> {
        let tensors = self.sources.iter();
        tensors.map(|t| (&t.info, t.own.as_str(), t.source.label()))
    }

    /// The tokens, merges and ids that tokenizer.json and the files beside it list.
    ///
    /// # Errors
    /// When it is no byte-level BPE with gpt-oss's split, or doesn't fit the model's vocabulary.
    pub fn vocabulary(&self) -> Result<Lists, FileError> {
        vocabulary::read(&self.path, &self.settings, self.config.vocab)
    }

    /// The vocabulary, ready to encode and decode.
    ///
    /// # Errors
    /// As [`Folder::vocabulary`]'s.
    pub fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        let lists = self.vocabulary()?;
        let built = Tokenizer::from_lists(&lists);
        built.map_err(|e| FileError::new(&lists.path, format!("{e:#}")).into())
    }

    /// The template that programs render conversations with, if the folder has one.
    pub fn chat_template(&self) -> Result<Option<String>, FileError> {
        vocabulary::chat_template(&self.path)
    }

    fn source(&self, tensor: &TensorInfo) -> Option<&Tensor> {
        self.by_name.get(&tensor.name).map(|&i| &self.sources[i])
    }

    fn bytes(&self, part: &Part) -> &[u8] {
        &self.files[part.file].1[part.range.clone()]
    }
}

impl Tensors for Folder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn config(&self) -> Result<Config, FileError> {
        Ok(self.config.clone())
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&i| &self.infos[i])
    }

    fn data(&self, tensor: &TensorInfo) -> Bytes {
        let Some(Source::Float { values, rows }) = self.source(tensor).map(|t| &t.source) else {
            return Bytes::Owned(Arc::new([]));
        };
        if *rows == Stride::ALL {
            let map = self.files[values.file].1.clone();
            return Bytes::Mapped(map, values.range.clone());
        }
        let size = tensor.kind.block_bytes();
        let values = self.bytes(values).chunks_exact(size);
        let taken: Vec<u8> = values
            .skip(rows.first)
            .step_by(rows.step)
            .flatten()
            .copied()
            .collect();
        Bytes::Owned(taken.into())
    }

    fn repacked(&self, tensor: &TensorInfo, dry: bool) -> Result<Option<Matrix>, FileError> {
        self.repack(tensor, dry)
    }

    fn error(&self, what: String) -> FileError {
        FileError::new(&self.path, what)
    }

    fn tensor_error(&self, tensor: &TensorInfo, what: &str) -> FileError {
        let own = self.source(tensor).map_or(tensor.name.as_str(), |t| &t.own);
        FileError::new(
            &self.files[tensor.file].0,
            format!("tensor `{own}`: {what}"),
        )
    }
}

/// The files `model*.safetensors`, in order; where an index lists them, all that it lists must be there.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let fail = |what: String| FileError::new(folder, what);
    let index = folder.join("model.safetensors.index.json");
    let mut names = Vec::new();
    if index.exists() {
        let index: serde_json::Value = json::read(&index, 64 << 20)?;
        let listed = index.get("weight_map").and_then(|map| map.as_object());
        names.extend(
            listed
                .into_iter()
                .flatten()
                .filter_map(|(_, name)| name.as_str())
                .map(str::to_owned),
        );
    }
    for entry in std::fs::read_dir(folder).map_err(|e| fail(e.to_string()))? {
        let name = entry.map_err(|e| fail(e.to_string()))?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            names.push(name.into_owned());
        }
    }
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(fail("expected files model*.safetensors, found none".into()));
    }
    if names.len() > MOST_FILES {
        return Err(fail(format!(
            "expected at most {MOST_FILES} files of weights, found {}",
            names.len()
        )));
    }
    for name in &names {
        if name.contains(['/', '\\']) {
            return Err(fail(format!(
                "model.safetensors.index.json: `{name}` is no file's name"
            )));
        }
        if !folder.join(name).exists() {
            return Err(fail(format!(
                "expected the file {name}, which model.safetensors.index.json lists, found no such file: \
                 the download is incomplete"
            )));
        }
    }
    Ok(names.iter().map(|name| folder.join(name)).collect())
}
