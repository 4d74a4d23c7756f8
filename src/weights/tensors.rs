//! Where weights come from: a GGUF file, or a folder that is read as if it were one.

use super::Matrix;
use crate::{
    config::Config,
    gguf::{Bytes, FileError, Gguf, TensorInfo},
};
use std::path::Path;

/// The tensors of one model, under the names that GGUF files give them.
pub trait Tensors {
    /// The file or folder, for messages.
    fn path(&self) -> &Path;
    /// The shape, checked.
    fn config(&self) -> Result<Config, FileError>;
    /// All tensors.
    fn tensors(&self) -> &[TensorInfo];
    /// A tensor by name.
    fn tensor(&self, name: &str) -> Option<&TensorInfo>;
    /// A tensor's bytes, in its type. Of a matrix that [`Tensors::repacked`] gives, nothing.
    fn data(&self, tensor: &TensorInfo) -> Bytes;
    /// A matrix that has to be rearranged before a back end can use it, if this is one; empty when `dry`.
    ///
    /// # Errors
    /// Where a value is not finite, or memory is short.
    fn repacked(&self, tensor: &TensorInfo, dry: bool) -> Result<Option<Matrix>, FileError>;
    /// An error about the whole.
    fn error(&self, what: String) -> FileError;
    /// An error about `tensor`, naming it and the file that holds it.
    fn tensor_error(&self, tensor: &TensorInfo, what: &str) -> FileError;
}

impl Tensors for Gguf {
    fn path(&self) -> &Path {
        Gguf::path(self)
    }
    fn config(&self) -> Result<Config, FileError> {
        Config::from_gguf(self)
    }
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }
    fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        Gguf::tensor(self, name)
    }
    fn data(&self, tensor: &TensorInfo) -> Bytes {
        Gguf::data(self, tensor)
    }
    fn repacked(&self, _: &TensorInfo, _: bool) -> Result<Option<Matrix>, FileError> {
        Ok(None)
    }
    fn error(&self, what: String) -> FileError {
        Gguf::error(self, what)
    }
    fn tensor_error(&self, tensor: &TensorInfo, what: &str) -> FileError {
        Gguf::tensor_error(self, tensor, what)
    }
}
