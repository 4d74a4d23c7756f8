//! Ctrl-C: the first stops what is being generated, the second quits; with nothing to stop, the
//! first quits.

use crate::engine::Cancel;
use anyhow::{Context, Result};
use std::{
    process,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

/// What a shell expects of a program that was interrupted.
pub const EXIT_CODE: i32 = 130;

static RUNNING: Mutex<Option<Cancel>> = Mutex::new(None);

fn running() -> MutexGuard<'static, Option<Cancel>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// While this lives, Ctrl-C throws `cancel` first.
pub struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        *running() = None;
    }
}

/// Makes the next Ctrl-C throw `cancel`.
pub fn guard(cancel: &Cancel) -> Result<Guard> {
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        ctrlc::set_handler(|| match &*running() {
            Some(cancel) if !cancel.is_cancelled() => {
                cancel.cancel();
                tell!("\nstopping (Ctrl-C again quits)");
            }
            _ => process::exit(EXIT_CODE),
        })
        .map_err(|error| error.to_string())
    });
    installed
        .clone()
        .map_err(anyhow::Error::msg)
        .context("catching Ctrl-C")?;
    *running() = Some(cancel.clone());
    Ok(Guard(()))
}
