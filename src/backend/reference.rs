//! The executable specification: scalar f32, slow, obvious.
