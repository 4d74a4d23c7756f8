//! Tests of what every kernel stands on. Those named `gpu_` need a GPU; the others need none.

mod device;
mod models;
mod weights;
