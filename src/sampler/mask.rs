//! Which tokens may come next: the seam between the engine, which knows ids only, and whatever
//! constrains an answer.

use std::sync::Arc;

/// Which tokens may come next.
#[derive(Debug, Clone, PartialEq)]
pub enum Mask {
    /// All of them.
    Any,
    /// All but these ids.
    Except(Arc<[u32]>),
    /// These ids alone.
    Only(Arc<[u32]>),
    /// Those whose bit is set: bit `id % 32` of word `id / 32`.
    Bits(Vec<u32>),
}

/// Decides, token by token, what may come next. Errors end the request with their words.
pub trait MaskSource: Send {
    /// The tokens that may come now.
    fn mask(&mut self) -> Result<Mask, String>;
    /// Takes note of the token that came.
    fn accept(&mut self, id: u32) -> Result<(), String>;
}
