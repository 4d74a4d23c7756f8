//! A folder's tokenizer.json: the tokens, kinds and merges that a GGUF file would list.

use super::{
    json,
    settings::{self, Settings},
};
use crate::{
    gguf::FileError,
    tokenizer::{SPLIT, TokenKind},
};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Most bytes of a tokenizer.json; the released one has 28 million.
const MOST_BYTES: u64 = 256 << 20;

/// A vocabulary as files list it.
#[derive(Debug)]
pub struct Lists {
    /// The file.
    pub path: PathBuf,
    /// By id: GPT-2's spelling of bytes for ordinary tokens, the text of others; as many as the embedding has
    /// rows.
    pub tokens: Vec<String>,
    /// One a token.
    pub kinds: Vec<TokenKind>,
    /// Pairs to merge, first to last, with a blank between.
    pub merges: Vec<String>,
    /// Ids that end an answer; the first is the one that ends a turn.
    pub stops: Vec<u32>,
    /// Start of text, where the folder names it.
    pub bos: Option<u32>,
    /// Padding, where the folder names it.
    pub pad: Option<u32>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
}

/// One blank between the two, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair([String; 2]),
}

/// Reads `folder`'s tokenizer.json for an embedding of `rows` rows.
pub(super) fn read(folder: &Path, settings: &Settings, rows: usize) -> Result<Lists, FileError> {
    let path = folder.join("tokenizer.json");
    let file: File = json::read(&path, MOST_BYTES)?;
    let fail = |what: String| FileError::new(&path, what);
    check(&file).map_err(fail)?;
    let mut tokens: Vec<Option<(String, TokenKind)>> = vec![None; rows];
    let place = |id: u32, text: &str| {
        let what = format!("token {text:?}: expected an id below {rows}, found {id}");
        if (id as usize) < rows {
            Ok(id as usize)
        } else {
            Err(fail(what))
        }
    };
    for (text, id) in file.model.vocab {
        let place = place(id, &text)?;
        if let Some((other, _)) = &tokens[place] {
            return Err(fail(format!(
                "expected one token of id {id}, found {other:?} and {text:?}"
            )));
        }
        tokens[place] = Some((text, TokenKind::Normal));
    }
    for Added {
        id,
        content,
        special,
    } in file.added_tokens
    {
        let place = place(id, &content)?;
        let marked = content.starts_with("<|") && content.ends_with("|>");
        let kind = if special || marked {
            TokenKind::Control
        } else {
            TokenKind::UserDefined
        };
        tokens[place] = Some((content, kind));
    }
    let padding = |(id, token): (usize, Option<_>)| {
        token.unwrap_or_else(|| (format!("[PAD{id}]"), TokenKind::Unused))
    };
    let (tokens, kinds): (Vec<_>, Vec<_>) = tokens.into_iter().enumerate().map(padding).unzip();
    let merges = file.model.merges.into_iter().map(|merge| match merge {
        Merge::Line(line) => line,
        Merge::Pair([left, right]) => format!("{left} {right}"),
    });
    let merges = merges.collect();
    let mut stops = settings.stops()?;
    let generation = folder.join("generation_config.json");
    if generation.exists() {
        stops.extend(settings::stops(
            &generation,
            &json::read(&generation, 1 << 20)?,
        )?);
    }
    let id = |id: u64| u32::try_from(id).ok().filter(|&id| (id as usize) < rows);
    let stops = stops.into_iter().map(|stop| {
        let what = format!("eos_token_id: expected token ids below {rows}, found {stop}");
        id(stop).ok_or_else(|| FileError::new(folder, what))
    });
    Ok(Lists {
        stops: stops.collect::<Result<_, _>>()?,
        bos: settings
            .id("bos_token_id")
            .and_then(id)
            .or_else(|| find(&tokens, "<|startoftext|>")),
        pad: settings
            .id("pad_token_id")
            .and_then(id)
            .or_else(|| find(&tokens, "<|endoftext|>")),
        path,
        tokens,
        kinds,
        merges,
    })
}

fn find(tokens: &[String], text: &str) -> Option<u32> {
    let at = tokens.iter().rposition(|token| token == text)?;
    u32::try_from(at).ok()
}

/// Refuses what would give other ids than ours: anything but o200k's byte-level BPE.
fn check(file: &File) -> Result<(), String> {
    let model = &file.model;
    if model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err(format!("model.type: expected BPE, found {:?}", model.kind));
    }
    let affix = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if model.dropout.is_some_and(|p| p != 0.0)
        || affix(&model.continuing_subword_prefix)
        || affix(&model.end_of_word_suffix)
        || model.byte_fallback
    {
        return Err(
            "model: expected byte-level BPE without dropout, prefixes, suffixes and byte fallback"
                .to_owned(),
        );
    }
    if !file.normalizer.is_null() {
        return Err(format!(
            "normalizer: expected none, found {}",
            json::short(&file.normalizer)
        ));
    }
    let listed = file
        .pre_tokenizer
        .get("pretokenizers")
        .and_then(Value::as_array);
    let alone = std::slice::from_ref(&file.pre_tokenizer);
    let mut patterns = listed.map_or(alone, Vec::as_slice).iter();
    let pattern = patterns.find_map(|step| step.pointer("/pattern/Regex")?.as_str());
    if pattern != Some(SPLIT) {
        return Err(format!(
            "pre_tokenizer: expected the split that gpt-oss uses (o200k's pattern), found {}",
            pattern.map_or("none".into(), |pattern| format!("{pattern:?}"))
        ));
    }
    Ok(())
}

/// The chat template: chat_template.jinja, or tokenizer_config.json's field.
pub(super) fn chat_template(folder: &Path) -> Result<Option<String>, FileError> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        return json::text(&path, 16 << 20).map(Some);
    }
    let path = folder.join("tokenizer_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config: Value = json::read(&path, 64 << 20)?;
    let template = config.get("chat_template").and_then(Value::as_str);
    Ok(template.map(str::to_owned))
}
