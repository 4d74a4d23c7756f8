//! Which tensors a file holds, in which order, and how their random values are scaled.
//!
//! Order and types are the released file's: output, its norm, the embedding, then each layer's
//! tensors by name; matrices Q8_0, experts MXFP4, the rest F32.
//!
//! Scales keep a random model well-behaved. Let every normed activation have rms 1. Then the
//! embedding has rms 1; queries, keys and values too; attention and experts each add about 0.07 to
//! a residual of 1, so rounding differences between engines don't grow from layer to layer; router
//! logits spread by 2.5, gates and ups by about 2.5 (some reach the clamp at 7); logits by 5, which
//! over 200,000 tokens gives a peaked, not degenerate, distribution.

use crate::config::Config;

/// How a tensor's values are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Values {
    /// f32, uniform in `center ± spread`.
    F32 {
        /// Middle.
        center: f32,
        /// Half the width.
        spread: f32,
    },
    /// Blocks of 34 bytes for 32 values of about this rms. Rows from `quiet_from` on are 16 times
    /// smaller: padding tokens, which no trained model predicts.
    Q8 {
        /// Root mean square.
        rms: f32,
        /// First small row.
        quiet_from: u64,
    },
    /// Blocks of 17 bytes for 32 values of about this rms; the blocks' scales differ by up to 8.
    Mxfp4 {
        /// Root mean square.
        rms: f32,
    },
}

/// A tensor type of the released file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    Q8,
    Mxfp4,
}

impl Kind {
    /// ggml's number.
    pub fn ggml(self) -> u32 {
        match self {
            Kind::F32 => 0,
            Kind::Q8 => 8,
            Kind::Mxfp4 => 39,
        }
    }
}

impl Values {
    pub fn kind(self) -> Kind {
        match self {
            Values::F32 { .. } => Kind::F32,
            Values::Q8 { .. } => Kind::Q8,
            Values::Mxfp4 { .. } => Kind::Mxfp4,
        }
    }

    /// (values, bytes) of a block.
    pub fn block(self) -> (u64, u64) {
        match self {
            Values::F32 { .. } => (1, 4),
            Values::Q8 { .. } => (32, 34),
            Values::Mxfp4 { .. } => (32, 17),
        }
    }
}

/// A tensor of the file to be.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub name: String,
    /// Innermost first.
    pub dims: Vec<u64>,
    pub kind: Kind,
    pub values: Values,
    /// From the start of the data.
    pub offset: u64,
    pub bytes: u64,
}

/// Every tensor, with offsets. `first_padding` is the first padding token.
pub(super) fn tensors(config: &Config, first_padding: u64) -> Vec<Tensor> {
    let c = config;
    let [hidden, width, experts, vocab] =
        [c.hidden, c.expert_width, c.experts, c.vocab].map(|n| n as u64);
    let (q, kv) = (
        (c.heads * c.head_dim) as u64,
        (c.kv_heads * c.head_dim) as u64,
    );
    let over = |rms: f32, inputs: u64| rms / (inputs as f32).sqrt();
    let bias = |spread| Values::F32 {
        center: 0.0,
        spread,
    };
    let norm = Values::F32 {
        center: 1.0,
        spread: 0.25,
    };
    let matrix = |rms| Values::Q8 {
        rms,
        quiet_from: u64::MAX,
    };
    let logits = Values::Q8 {
        rms: over(5.0, hidden),
        quiet_from: first_padding,
    };

    let mut list = vec![
        ("output.weight".to_owned(), vec![hidden, vocab], logits),
        ("output_norm.weight".to_owned(), vec![hidden], norm),
        (
            "token_embd.weight".to_owned(),
            vec![hidden, vocab],
            matrix(1.0),
        ),
    ];
    for layer in 0..c.layers {
        let of_layer = [
            ("attn_k.bias", vec![kv], bias(0.2)),
            ("attn_k.weight", vec![hidden, kv], matrix(over(1.0, hidden))),
            ("attn_norm.weight", vec![hidden], norm),
            ("attn_output.bias", vec![hidden], bias(0.02)),
            ("attn_output.weight", vec![q, hidden], matrix(over(0.15, q))),
            ("attn_q.bias", vec![q], bias(0.2)),
            ("attn_q.weight", vec![hidden, q], matrix(over(1.0, hidden))),
            (
                "attn_sinks.weight",
                vec![c.heads as u64],
                Values::F32 {
                    center: 0.5,
                    spread: 1.5,
                },
            ),
            ("attn_v.bias", vec![kv], bias(0.2)),
            ("attn_v.weight", vec![hidden, kv], matrix(over(1.0, hidden))),
            ("ffn_down_exps.bias", vec![hidden, experts], bias(0.02)),
            (
                "ffn_down_exps.weight",
                vec![width, hidden, experts],
                Values::Mxfp4 {
                    rms: over(0.022, width),
                },
            ),
            ("ffn_gate_exps.bias", vec![width, experts], bias(0.2)),
            (
                "ffn_gate_exps.weight",
                vec![hidden, width, experts],
                Values::Mxfp4 {
                    rms: over(2.5, hidden),
                },
            ),
            ("ffn_gate_inp.bias", vec![experts], bias(0.5)),
            (
                "ffn_gate_inp.weight",
                vec![hidden, experts],
                bias(over(2.5 * 1.732, hidden)),
            ),
            ("ffn_up_exps.bias", vec![width, experts], bias(0.2)),
            (
                "ffn_up_exps.weight",
                vec![hidden, width, experts],
                Values::Mxfp4 {
                    rms: over(2.5, hidden),
                },
            ),
            ("post_attention_norm.weight", vec![hidden], norm),
        ];
        let named =
            of_layer.map(|(name, dims, values)| (format!("blk.{layer}.{name}"), dims, values));
        list.extend(named);
    }

    let mut offset = 0;
    let place = |(name, dims, values): (String, Vec<u64>, Values)| {
        let (values_per_block, block) = values.block();
        let bytes = dims.iter().product::<u64>() / values_per_block * block;
        let tensor = Tensor {
            name,
            dims,
            kind: values.kind(),
            values,
            offset,
            bytes,
        };
        offset += bytes.next_multiple_of(crate::gguf::write::ALIGNMENT);
        tensor
    };
    list.into_iter().map(place).collect()
}
