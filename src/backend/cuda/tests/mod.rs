//! Tests of what every kernel stands on. Those named `gpu_` need a GPU; the others need none.

mod device;
#[cfg(target_os = "linux")]
mod driver;
mod models;
mod weights;
