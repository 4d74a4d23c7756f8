//! Models of random bytes: every format's corners, nothing that could be run.

use crate::{
    config::{Config, Rope, SWIGLU_LIMIT},
    gguf::Bytes,
    weights::{Format, Layer, Linear, Matrix, Model, Weights},
};
use std::{ops::Range, sync::Arc};

/// SplitMix64.
pub struct Random {
    state: u64,
    /// Of MXFP4 blocks.
    exponents: Range<u64>,
}

impl Random {
    pub fn new(seed: u64, exponents: Range<u64>) -> Random {
        Random {
            state: seed,
            exponents,
        }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// f16 bits of a finite value.
    fn half(&mut self) -> u16 {
        loop {
            let bits = self.next() as u16;
            if half::f16::from_bits(bits).is_finite() {
                return bits;
            }
        }
    }

    /// A float of about 2^-8 to 2^8, or zero.
    fn float(&mut self) -> f32 {
        let (sign, exponent) = (self.next() as u32 & 1 << 31, 119 + self.below(16) as u32);
        match self.below(20) {
            0 => 0.0,
            _ => f32::from_bits(sign | exponent << 23 | self.next() as u32 & 0x7f_ffff),
        }
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }

    pub fn matrix(&mut self, format: Format, rows: usize, cols: usize) -> Matrix {
        let mut data = Vec::with_capacity(rows * format.row_bytes(cols));
        for _ in 0..rows * cols / 32 {
            match format {
                Format::F32 => (0..32).for_each(|_| data.extend(self.float().to_le_bytes())),
                Format::F16 => (0..32).for_each(|_| data.extend(self.half().to_le_bytes())),
                Format::BF16 => (0..32).for_each(|_| {
                    data.extend(((self.float().to_bits() >> 16) as u16).to_le_bytes());
                }),
                Format::Q8_0 => {
                    data.extend(self.half().to_le_bytes());
                    (0..32).for_each(|_| data.push(self.next() as u8));
                }
                Format::MXFP4 => {
                    let Range { start, end } = self.exponents;
                    data.push((start + self.below(end - start)) as u8);
                    (0..16).for_each(|_| data.push(self.next() as u8));
                }
            }
        }
        Matrix {
            format,
            rows,
            cols,
            data: Bytes::Owned(data.into()),
            offsets: None,
        }
    }

    fn linear(&mut self, formats: &[Format], rows: usize, cols: usize) -> Linear {
        let format = self.pick(formats);
        Linear {
            weight: self.matrix(format, rows, cols),
            bias: self.floats(rows),
        }
    }

    /// A layer for each of `layers`: formats of attention's matrices, and of experts', dealt at random. The
    /// embedding and LM head are of format `tables`.
    pub fn model(
        &mut self,
        mut config: Config,
        layers: &[[&[Format]; 2]],
        tables: Format,
    ) -> Model {
        config.layers = layers.len();
        let c = &config;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let layers = layers.iter().map(|[dense, experts]| Layer {
            q: self.linear(dense, q, c.hidden),
            k: self.linear(dense, kv, c.hidden),
            v: self.linear(dense, kv, c.hidden),
            o: self.linear(dense, c.hidden, q),
            router: self.linear(dense, c.experts, c.hidden),
            gate: self.linear(experts, c.experts * c.expert_width, c.hidden),
            up: self.linear(experts, c.experts * c.expert_width, c.hidden),
            down: self.linear(experts, c.experts * c.hidden, c.expert_width),
            attn_norm: self.floats(c.hidden),
            sinks: self.floats(c.heads),
            post_attention_norm: self.floats(c.hidden),
        });
        let layers = layers.collect();
        let weights = Weights {
            layers,
            token_embd: self.matrix(tables, c.vocab, c.hidden),
            output_norm: self.floats(c.hidden),
            output: self.matrix(tables, c.vocab, c.hidden),
        };
        Model { config, weights }
    }
}

/// Row lengths that are odd multiples of 32, a vocabulary that fills no tile.
pub fn odd_shape() -> Config {
    Config {
        name: "odd".into(),
        layers: 0,
        hidden: 160,
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
        experts: 5,
        experts_used: 4,
        expert_width: 96,
        vocab: 203,
        context: 4099,
        window: 24,
        rms_eps: 1e-5,
        swiglu_limit: SWIGLU_LIMIT,
        rope: Rope {
            theta: 150000.0,
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            rounded: false,
        },
    }
}

/// A model of this shape without bytes, for what depends on shapes alone.
pub fn hollow(config: Config, dense: Format, experts: Format) -> Model {
    let c = &config;
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    let matrix = |format, rows, cols| Matrix {
        format,
        rows,
        cols,
        data: Bytes::Owned(Arc::new([])),
        offsets: None,
    };
    let linear = |format, rows, cols| Linear {
        weight: matrix(format, rows, cols),
        bias: vec![0.0; rows],
    };
    let layers = (0..c.layers).map(|_| Layer {
        q: linear(dense, q, c.hidden),
        k: linear(dense, kv, c.hidden),
        v: linear(dense, kv, c.hidden),
        o: linear(dense, c.hidden, q),
        router: linear(Format::F32, c.experts, c.hidden),
        gate: linear(experts, c.experts * c.expert_width, c.hidden),
        up: linear(experts, c.experts * c.expert_width, c.hidden),
        down: linear(experts, c.experts * c.hidden, c.expert_width),
        attn_norm: vec![0.0; c.hidden],
        sinks: vec![0.0; c.heads],
        post_attention_norm: vec![0.0; c.hidden],
    });
    let weights = Weights {
        layers: layers.collect(),
        token_embd: matrix(dense, c.vocab, c.hidden),
        output_norm: vec![0.0; c.hidden],
        output: matrix(dense, c.vocab, c.hidden),
    };
    Model { config, weights }
}
