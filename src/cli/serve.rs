//! `gossamer serve`: the OpenAI-compatible server.

use super::model::Common;
use crate::server::models::{Facts, Running, Source};
use anyhow::Result;
use std::sync::Arc;

/// The model inside this program.
///
/// # Errors
/// When it can't be read.
pub fn demo_source() -> Result<Source> {
    let common = Common::default();
    let gguf = common.open_gguf()?;
    let (facts, config) = Facts::read(&gguf)?;
    let load = move || {
        let loaded = common.open()?;
        let (engine, tokenizer) = loaded.into_engine()?;
        Ok(Running {
            engine: Arc::new(engine),
            tokenizer,
        })
    };
    Ok(Source {
        names: vec![config.name],
        aliases: Vec::new(),
        facts: Facts {
            is_demo: true,
            ..facts
        },
        bytes: 0,
        load: Arc::new(load),
    })
}
