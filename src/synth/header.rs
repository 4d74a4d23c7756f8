//! A GGUF header: metadata in order, then the tensor directory, then padding to the data.

use super::layout::Tensor;
use crate::{
    config::Config,
    tokenizer::{TokenKind, Tokenizer, Vocabulary, to_gpt2},
};
use anyhow::Result;

/// Data and every tensor start at a multiple of this.
pub(super) const ALIGNMENT: u64 = 32;

/// Header size of the released gpt-oss-20b file (12,109,566,400 bytes less its tensors).
const RELEASED_20B: usize = 13_008_064;

/// Writes Harmony messages one after another; enough for programs that insist on a template.
const TEMPLATE: &str = "{#- Random weights: the answers mean nothing. -#}\
{%- for message in messages -%}\
<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>\
{%- endfor -%}\
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}";

/// Bytes of a GGUF file's front, as they accumulate.
#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    keys: u64,
}

impl Writer {
    fn text(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.keys += 1;
        self.text(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn u32(&mut self, key: &str, value: usize) {
        self.key(key, 4);
        self.bytes.extend((value as u32).to_le_bytes());
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        self.text(value);
    }

    /// Starts an array of `count` elements of type `kind`; its bytes follow.
    fn array(&mut self, key: &str, kind: u32, count: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((count as u64).to_le_bytes());
    }
}

/// Everything before the tensors' data, with the keys of the released file in its order.
pub(super) fn header(
    config: &Config,
    vocabulary: &Vocabulary,
    tensors: &[Tensor],
) -> Result<Vec<u8>> {
    let mut w = Writer::default();
    model_keys(&mut w, config);
    tokenizer_keys(&mut w, vocabulary)?;
    let mut tail = Writer::default();
    tail.u32("general.quantization_version", 2);
    tail.u32("general.file_type", 38); // mostly MXFP4
    let mut directory = Writer::default();
    for tensor in tensors {
        directory.text(&tensor.name);
        directory
            .bytes
            .extend((tensor.dims.len() as u32).to_le_bytes());
        for dim in &tensor.dims {
            directory.bytes.extend(dim.to_le_bytes());
        }
        directory.bytes.extend(tensor.kind.ggml().to_le_bytes());
        directory.bytes.extend(tensor.offset.to_le_bytes());
    }

    // The released template is longer than ours: blanks make up the difference where the model is
    // otherwise the released one, so that the files are equally long.
    let mut template = TEMPLATE.to_owned();
    // 24: magic, version, counts; 43: the template's key, type and length.
    let fixed = 24 + 43 + template.len() + w.bytes.len() + tail.bytes.len() + directory.bytes.len();
    if config.layers == 24
        && config.experts == 32
        && config.vocab == 201_088
        && fixed < RELEASED_20B
    {
        template += &format!(
            "{{#-{}-#}}",
            " ".repeat(RELEASED_20B.saturating_sub(fixed + 6))
        );
    }
    w.string("tokenizer.chat_template", &template);
    w.bytes.extend(tail.bytes);
    w.keys += tail.keys;

    let mut front = Vec::with_capacity(w.bytes.len() + directory.bytes.len() + 64);
    front.extend(b"GGUF");
    front.extend(3u32.to_le_bytes());
    front.extend((tensors.len() as u64).to_le_bytes());
    front.extend(w.keys.to_le_bytes());
    front.extend(w.bytes);
    front.extend(directory.bytes);
    front.resize(front.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok(front)
}

fn model_keys(w: &mut Writer, config: &Config) {
    w.string("general.architecture", "gpt-oss");
    w.string("general.type", "model");
    w.string("general.name", &config.name);
    w.string("general.basename", "gpt-oss");
    w.string("general.size_label", &size_label(config));
    w.string("general.license", "apache-2.0");
    w.array("general.tags", 8, 2);
    w.text("synthetic");
    w.text("text-generation");
    w.u32("gpt-oss.block_count", config.layers);
    w.u32("gpt-oss.context_length", config.context);
    w.u32("gpt-oss.embedding_length", config.hidden);
    w.u32("gpt-oss.feed_forward_length", config.expert_width);
    w.u32("gpt-oss.attention.head_count", config.heads);
    w.u32("gpt-oss.attention.head_count_kv", config.kv_heads);
    w.f32("gpt-oss.rope.freq_base", config.rope.theta);
    w.f32("gpt-oss.attention.layer_norm_rms_epsilon", config.rms_eps);
    w.u32("gpt-oss.expert_count", config.experts);
    w.u32("gpt-oss.expert_used_count", config.experts_used);
    w.u32("gpt-oss.attention.key_length", config.head_dim);
    w.u32("gpt-oss.attention.value_length", config.head_dim);
    w.u32("gpt-oss.attention.sliding_window", config.window);
    w.u32("gpt-oss.expert_feed_forward_length", config.expert_width);
    w.string("gpt-oss.rope.scaling.type", "yarn");
    w.f32("gpt-oss.rope.scaling.factor", config.rope.factor);
    w.u32(
        "gpt-oss.rope.scaling.original_context_length",
        config.rope.original_context,
    );
}

fn tokenizer_keys(w: &mut Writer, vocabulary: &Vocabulary) -> Result<()> {
    w.string("tokenizer.ggml.model", "gpt2");
    w.string("tokenizer.ggml.pre", "gpt-4o");
    let tokens: Vec<String> = vocabulary
        .tokens
        .iter()
        .zip(&vocabulary.kinds)
        .map(|(token, kind)| match kind {
            TokenKind::Normal => to_gpt2(token),
            _ => String::from_utf8_lossy(token).into_owned(),
        })
        .collect();
    w.array("tokenizer.ggml.tokens", 8, tokens.len());
    for token in &tokens {
        w.text(token);
    }
    w.array("tokenizer.ggml.token_type", 5, tokens.len());
    for kind in &vocabulary.kinds {
        w.bytes.extend(kind.ggml().to_le_bytes());
    }
    let tokenizer = Tokenizer::new(vocabulary.tokens.clone(), vocabulary.kinds.clone())?;
    let merges = tokenizer.derive_merges();
    w.array("tokenizer.ggml.merges", 8, merges.len());
    for (left, right) in merges {
        w.text(&format!(
            "{} {}",
            tokens[left as usize], tokens[right as usize]
        ));
    }
    w.u32("tokenizer.ggml.bos_token_id", vocabulary.bos as usize);
    w.u32("tokenizer.ggml.eos_token_id", vocabulary.eos as usize);
    w.u32("tokenizer.ggml.padding_token_id", vocabulary.pad as usize);
    Ok(())
}

/// `20B`, as converters name sizes; below a billion `12M`.
fn size_label(config: &Config) -> String {
    let c = config;
    let attention = c.head_dim * c.hidden * (2 * c.heads + 2 * c.kv_heads);
    let experts = c.experts * c.hidden * (3 * c.expert_width + 1);
    let parameters = c.layers * (attention + experts) + 2 * c.vocab * c.hidden;
    match parameters {
        n if n >= 1_000_000_000 => format!("{}B", n / 1_000_000_000),
        n => format!("{}M", n.div_ceil(1_000_000)),
    }
}
