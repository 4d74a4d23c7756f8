//! The front of a synthetic file: the released file's keys in its order.

use super::layout::Tensor;
use crate::{
    config::Config,
    gguf::write::{self, Directory, Metadata},
    tokenizer::{TokenKind, Tokenizer, Vocabulary, to_gpt2},
};
use anyhow::Result;

/// Header size of the released gpt-oss-20b file (12,109,566,400 bytes less its tensors).
const RELEASED_20B: usize = 13_008_064;

/// Writes Harmony messages one after another; enough for programs that insist on a template.
const TEMPLATE: &str = "{#- Random weights: the answers mean nothing. -#}\
{%- for message in messages -%}\
<|start|>{{ message.role }}<|message|>{{ message.content }}<|end|>\
{%- endfor -%}\
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}";

/// Everything before the tensors' data, with the keys of the released file in its order.
pub(super) fn header(
    config: &Config,
    vocabulary: &Vocabulary,
    tensors: &[Tensor],
) -> Result<Vec<u8>> {
    let mut w = Metadata::default();
    model_keys(&mut w, config);
    tokenizer_keys(&mut w, vocabulary)?;
    let mut tail = Metadata::default();
    tail.u32("general.quantization_version", 2);
    tail.u32("general.file_type", 38); // mostly MXFP4
    let mut directory = Directory::default();
    for t in tensors {
        directory.push(&t.name, &t.dims, t.kind.ggml(), t.offset);
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
    w.extend(tail);
    Ok(write::front(w, directory))
}

fn model_keys(w: &mut Metadata, config: &Config) {
    w.string("general.architecture", "gpt-oss");
    w.string("general.type", "model");
    w.string("general.name", &config.name);
    w.string("general.basename", "gpt-oss");
    w.string("general.size_label", &size_label(config));
    w.string("general.license", "apache-2.0");
    w.strings("general.tags", ["synthetic", "text-generation"].into_iter());
    w.shape(config);
}

fn tokenizer_keys(w: &mut Metadata, vocabulary: &Vocabulary) -> Result<()> {
    let tokens: Vec<String> = vocabulary
        .tokens
        .iter()
        .zip(&vocabulary.kinds)
        .map(|(token, kind)| match kind {
            TokenKind::Normal => to_gpt2(token),
            _ => String::from_utf8_lossy(token).into_owned(),
        })
        .collect();
    let tokenizer = Tokenizer::new(vocabulary.tokens.clone(), vocabulary.kinds.clone())?;
    let merges = tokenizer.derive_merges();
    let merges = merges
        .iter()
        .map(|&(left, right)| format!("{} {}", tokens[left as usize], tokens[right as usize]));
    w.vocabulary(&tokens, &vocabulary.kinds, merges);
    w.u32("tokenizer.ggml.bos_token_id", vocabulary.bos as usize);
    w.u32("tokenizer.ggml.eos_token_id", vocabulary.eos as usize);
    w.u32("tokenizer.ggml.padding_token_id", vocabulary.pad as usize);
    Ok(())
}

/// `20B`, as converters name sizes; below a billion `12M`.
pub(crate) fn size_label(config: &Config) -> String {
    let c = config;
    let attention = c.head_dim * c.hidden * (2 * c.heads + 2 * c.kv_heads);
    let experts = c.experts * c.hidden * (3 * c.expert_width + 1);
    let parameters = c.layers * (attention + experts) + 2 * c.vocab * c.hidden;
    match parameters {
        n if n >= 1_000_000_000 => format!("{}B", n / 1_000_000_000),
        n => format!("{}M", n.div_ceil(1_000_000)),
    }
}
