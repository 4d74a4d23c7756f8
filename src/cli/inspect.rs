//! `gossamer inspect`: what a model's files hold, without reading weights.

use super::model::find;
use crate::{
    checkpoint::Checkpoint,
    config::Config,
    gguf::{Array, Gguf, TensorInfo, Value},
    hub,
    quant::GgmlType,
};
use anyhow::Result;
use serde_json::{Map, Value as Json, json};
use std::{collections::BTreeMap, fmt::Write as _, io::Write as _};

/// What `inspect` reads.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub struct Args {
    /// A GGUF file (any part of a split one), a folder of safetensors, or the name of a pulled model such
    /// as gpt-oss-20b
    #[arg(value_name = "FILE")]
    file: String,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Examples:
  gossamer inspect gpt-oss-20b-mxfp4.gguf
  gossamer inspect m.gguf --json | jq .types

Any GGUF file can be shown, of other models and of types that Gossamer doesn't run too; the line
`runs` says whether it does. Of a folder of safetensors, tensors are shown under their own names, in
the form that they have there. No weight is read: a 12 GB file takes a few milliseconds.";

/// Elements of an array that are shown.
const SHOWN: usize = 6;
/// Characters of a string that are shown in the listing (`--json` has them all).
const SHOWN_CHARS: usize = 60;

/// Prints the file's header, metadata, tensors and bytes by type.
pub fn run(args: Args) -> Result<()> {
    let checkpoint = Checkpoint::open(&find(&args.file)?)?;
    let text = report(&checkpoint, args.json)?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// What is printed: a listing for people, or one JSON object.
pub fn report(checkpoint: &Checkpoint, json: bool) -> Result<String> {
    if json {
        Ok(serde_json::to_string_pretty(&as_json(checkpoint))? + "\n")
    } else {
        Ok(listing(checkpoint))
    }
}

/// A tensor as it is shown.
struct Shown<'a> {
    /// As the file or folder names it.
    name: &'a str,
    /// Its type, or an MLX matrix's form such as `affine8/64`.
    form: String,
    info: &'a TensorInfo,
}

fn tensors(checkpoint: &Checkpoint) -> Vec<Shown<'_>> {
    match checkpoint {
        Checkpoint::Gguf(gguf) => {
            let shown = gguf.tensors.iter().map(|info| Shown {
                name: &info.name,
                form: info.kind.to_string(),
                info,
            });
            shown.collect()
        }
        Checkpoint::Folder(folder) => {
            let shown = folder.listing();
            shown
                .map(|(info, name, form)| Shown { name, form, info })
                .collect()
        }
    }
}

/// Tensors and bytes of each form, most bytes first.
fn by_form(tensors: &[Shown]) -> Vec<(String, usize, usize)> {
    let mut sums: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for tensor in tensors {
        let sum = sums.entry(&tensor.form).or_default();
        sum.0 += 1;
        sum.1 += tensor.info.bytes;
    }
    let mut sums: Vec<_> = sums
        .into_iter()
        .map(|(form, (n, bytes))| (form.to_owned(), n, bytes))
        .collect();
    sums.sort_by_key(|&(_, _, bytes)| std::cmp::Reverse(bytes));
    sums
}

/// The metadata of a GGUF file; a folder's is its config.json.
fn gguf(checkpoint: &Checkpoint) -> Option<&Gguf> {
    match checkpoint {
        Checkpoint::Gguf(gguf) => Some(gguf),
        Checkpoint::Folder(_) => None,
    }
}

/// Parameters: all of them, and those that one token uses (its experts; not the embedding).
pub(crate) fn parameters(tensors: &[TensorInfo], config: Option<&Config>) -> (u64, u64) {
    let (mut all, mut active) = (0, 0);
    for tensor in tensors {
        let values: u64 = tensor.dims.iter().product();
        all += values;
        active += match config {
            _ if tensor.name == "token_embd.weight" => 0,
            Some(c) if tensor.name.contains("_exps.") => {
                values / c.experts as u64 * c.experts_used as u64
            }
            _ => values,
        };
    }
    (all, active)
}

/// The type of most bytes.
pub(crate) fn main_type(tensors: &[TensorInfo]) -> Option<GgmlType> {
    let mut sums: BTreeMap<GgmlType, usize> = BTreeMap::new();
    for tensor in tensors {
        *sums.entry(tensor.kind).or_default() += tensor.bytes;
    }
    sums.into_iter()
        .max_by_key(|&(_, bytes)| bytes)
        .map(|(kind, _)| kind)
}

fn as_json(checkpoint: &Checkpoint) -> Json {
    let checked = checkpoint.check();
    let config = checked.as_ref().ok().map(|check| &check.model.config);
    let (all, active) = parameters(checkpoint.tensors(), config);
    let (gguf, shown) = (gguf(checkpoint), tensors(checkpoint));
    let files: Vec<Json> = checkpoint
        .files()
        .iter()
        .map(|(path, map)| json!({ "path": path.display().to_string(), "bytes": map.len() }))
        .collect();
    let mut metadata = Map::new();
    for (key, value) in gguf.into_iter().flat_map(Gguf::metadata) {
        metadata.insert(key.to_owned(), json_value(value));
    }
    let tensor = |t: &Shown| {
        let Shown { name, form, info } = t;
        json!({ "name": name, "type": form, "dims": info.dims, "bytes": info.bytes,
                "file": info.file, "offset": info.offset })
    };
    let types: Vec<Json> = by_form(&shown)
        .into_iter()
        .map(|(form, n, bytes)| json!({ "type": form, "tensors": n, "bytes": bytes }))
        .collect();
    json!({
        "files": files,
        "bytes": checkpoint.file_bytes(),
        "version": gguf.map(|gguf| gguf.version),
        "alignment": gguf.map(|gguf| gguf.alignment),
        "runs": config.is_some(),
        "error": checked.as_ref().err().map(|e| format!("{e:#}")),
        "notes": checked.as_ref().map(|check| check.cost.notes.as_slice()).unwrap_or_default(),
        "converted_bytes": checked.as_ref().map(|check| check.cost.converted_bytes).ok(),
        "model": config.map(|c| json!({
            "name": c.name, "layers": c.layers, "hidden": c.hidden, "heads": c.heads,
            "kv_heads": c.kv_heads, "head_dim": c.head_dim, "experts": c.experts,
            "experts_used": c.experts_used, "expert_width": c.expert_width, "vocab": c.vocab,
            "context": c.context, "window": c.window, "rms_eps": json_f32(c.rms_eps),
            "rope_theta": json_f32(c.rope.theta), "yarn_factor": json_f32(c.rope.factor),
            "yarn_original_context": c.rope.original_context,
        })),
        "parameters": { "all": all, "active": config.map(|_| active) },
        "types": types,
        "metadata": metadata,
        "tensors": shown.iter().map(tensor).collect::<Vec<_>>(),
    })
}

/// The shortest decimal that is this f32; null for infinities and NaN, which JSON lacks.
fn json_f32(value: f32) -> Json {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Json::Null, Json::from)
}

/// Scalars as themselves; arrays as their type, length and first elements.
fn json_value(value: Value<'_>) -> Json {
    match value {
        Value::U64(v) => v.into(),
        Value::I64(v) => v.into(),
        Value::F32(v) => json_f32(v),
        Value::F64(v) => v.into(),
        Value::Bool(v) => v.into(),
        Value::Str(v) => String::from_utf8_lossy(v).into(),
        Value::Array(a) => json!({
            "array_of": a.element.name(),
            "length": a.len,
            "first": a.iter().take(SHOWN).map(json_value).collect::<Vec<_>>(),
        }),
    }
}

fn listing(checkpoint: &Checkpoint) -> String {
    let mut out = String::new();
    let tensors = tensors(checkpoint);
    summary(checkpoint, &tensors, &mut out);
    if let Some(gguf) = gguf(checkpoint) {
        metadata(gguf, &mut out);
    }
    let wide = tensors
        .iter()
        .map(|t| t.name.chars().count())
        .max()
        .unwrap_or(0)
        .min(50);
    let _ = writeln!(out, "\ntensors ({})", tensors.len());
    for t in &tensors {
        let dims: Vec<String> = t.info.dims.iter().map(u64::to_string).collect();
        let name = plain(t.name);
        let dims = dims.join(" x ");
        let _ = writeln!(
            out,
            "  {name:wide$}  {:11}  {dims:20}  {:>10}",
            t.form,
            hub::human(t.info.bytes as u64)
        );
    }
    out
}

fn metadata(gguf: &Gguf, out: &mut String) {
    let keys: Vec<(String, String)> = gguf
        .metadata()
        .map(|(key, value)| (plain(key), show(value)))
        .collect();
    let wide = keys
        .iter()
        .map(|(key, _)| key.chars().count())
        .max()
        .unwrap_or(0)
        .min(50);
    let _ = writeln!(out, "\nmetadata ({})", keys.len());
    for (key, value) in keys {
        let _ = writeln!(out, "  {key:wide$}  {value}");
    }
}

fn summary(checkpoint: &Checkpoint, tensors: &[Shown], out: &mut String) {
    let bytes = hub::human(checkpoint.file_bytes());
    let checked = checkpoint.check();
    let config = checked.as_ref().ok().map(|check| &check.model.config);
    let (all, active) = parameters(checkpoint.tensors(), config);
    let mut line = |label: &str, text: String| {
        let _ = writeln!(out, "{label:11}{text}");
    };
    let parts = match checkpoint.files().len() {
        1 => String::new(),
        n => format!(" in {n} parts"),
    };
    match gguf(checkpoint) {
        Some(gguf) => {
            let text = |key| gguf.str(key).ok().flatten();
            let name = text("general.name").unwrap_or("unnamed");
            let arch = text("general.architecture").unwrap_or("no architecture");
            line("model", format!("{} ({})", plain(name), plain(arch)));
            line(
                "file",
                format!("GGUF version {}, {bytes}{parts}", gguf.version),
            );
        }
        None => {
            let name = config.map_or("unnamed", |config| &config.name);
            line("model", format!("{} (gpt_oss)", plain(name)));
            line("folder", format!("safetensors, {bytes}{parts}"));
        }
    }
    match config {
        Some(c) => {
            line(
                "parameters",
                format!("{}, {} a token", count(all), count(active)),
            );
            line(
                "shape",
                format!(
                    "{} layers, hidden {}, {} query and {} KV heads of {}, {} experts of {} ({} a \
                     token), vocabulary {}",
                    c.layers,
                    c.hidden,
                    c.heads,
                    c.kv_heads,
                    c.head_dim,
                    c.experts,
                    c.expert_width,
                    c.experts_used,
                    c.vocab
                ),
            );
            let yarn = if c.rope.factor > 1.0 {
                format!(" (YaRN {} x {})", c.rope.factor, c.rope.original_context)
            } else {
                String::new()
            };
            let context = format!(
                "{}{yarn}, sliding window {} on even layers",
                c.context, c.window
            );
            line("context", context);
        }
        None => line("parameters", count(all)),
    }
    let data: usize = tensors.iter().map(|t| t.info.bytes).sum();
    for (i, (form, tensors, bytes)) in by_form(tensors).into_iter().enumerate() {
        let percent = 100.0 * bytes as f64 / data as f64;
        let label = if i == 0 { "types" } else { "" };
        line(
            label,
            format!(
                "{form:11} {tensors:4} tensors {:>10} {percent:5.1} %",
                hub::human(bytes as u64)
            ),
        );
    }
    match &checked {
        Ok(check) => {
            line("runs", "yes".to_owned());
            check
                .cost
                .notes
                .iter()
                .for_each(|note| line("", note.clone()));
        }
        Err(error) => line("runs", format!("no: {error:#}")),
    }
}

/// A number of parameters as people write it: `20.91 B`.
fn count(n: u64) -> String {
    match n as f64 {
        n if n >= 1e8 => format!("{:.2} B", n / 1e9),
        n if n >= 1e5 => format!("{:.2} M", n / 1e6),
        n => format!("{n}"),
    }
}

/// Text from a file, with nothing in it that a terminal would obey.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// A value on one line.
fn show(value: Value<'_>) -> String {
    match value {
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
        Value::Str(v) => show_text(v),
        Value::Array(a) => show_array(a),
    }
}

fn show_text(bytes: &[u8]) -> String {
    // Enough bytes for the characters shown, whatever their width.
    let (head, cut) = match bytes.get(..SHOWN_CHARS * 4) {
        Some(head) => (head, true),
        None => (bytes, false),
    };
    let text = String::from_utf8_lossy(head);
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], bytes.len()),
        None if cut => format!("{text:?}… ({} bytes)", bytes.len()),
        None => format!("{text:?}"),
    }
}

fn show_array(array: Array<'_>) -> String {
    let first: Vec<String> = array.iter().take(SHOWN).map(show).collect();
    let more = if array.len > first.len() { ", …" } else { "" };
    let (n, element) = (array.len, array.element.name());
    format!("{n} x {element} [{}{more}]", first.join(", "))
}
