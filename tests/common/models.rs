//! Small random models: in memory, or made by tools/make_tiny_models.py.

use gossamer::{
    config::{Config, Rope, SWIGLU_LIMIT},
    gguf::{Bytes, Gguf},
    safetensors::Folder,
    weights::{Format, Layer, Linear, Matrix, Model, Weights},
};
use std::path::PathBuf;

/// What tools/make_tiny_models.py wrote; the folder goes with it.
pub struct Tiny {
    pub folder: tempfile::TempDir,
    /// 300 random token ids.
    pub ids: Vec<u32>,
}

impl Tiny {
    /// The model of `seed`, in GGUF and MLX form.
    pub fn make(seed: u64) -> Tiny {
        Tiny::make_with(seed, "q8", 1)
    }

    /// As [`Tiny::make`], with dense matrices in the form `dense`, and in so many shards; `bf16` is in OpenAI's
    /// layout too.
    pub fn make_with(seed: u64, dense: &str, shards: usize) -> Tiny {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (seed, shards) = (seed.to_string(), shards.to_string());
        super::tool(
            "make_tiny_models.py",
            &[
                &folder.path(),
                &"--seed",
                &seed,
                &"--dense",
                &dense,
                &"--shards",
                &shards,
            ],
        );
        let ids = std::fs::read(folder.path().join("ids.json")).expect("ids.json");
        Tiny {
            ids: serde_json::from_slice(&ids).expect("an array of ids"),
            folder,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One of its folders, opened.
    pub fn open(&self, folder: &str) -> Folder {
        Folder::open(&self.path(folder)).expect("the folder opens")
    }

    /// The GGUF file, loaded by our own reader.
    pub fn load(&self) -> Model {
        let gguf = Gguf::open(&self.path("tiny.gguf")).expect("tiny.gguf opens");
        Model::load(&gguf).expect("tiny.gguf loads")
    }
}

/// SplitMix64: small, seeded, good enough to draw weights and tokens.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Roughly normal, standard deviation 1.
    pub fn bell(&mut self) -> f32 {
        (0..3).map(|_| self.unit()).sum()
    }

    pub fn tokens(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        (0..n).map(|_| self.below(vocab) as u32).collect()
    }
}

/// A model in memory. `formats` are dealt to the matrices at random.
pub fn random_model(
    random: &mut Random,
    config: Config,
    formats: &[Format],
    experts: &[Format],
) -> Model {
    let (hidden, width) = (config.hidden, config.expert_width);
    let (q_width, kv_width) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let norm = |random: &mut Random| {
        (0..hidden)
            .map(|_| 1.0 + 0.5 * random.unit())
            .collect::<Vec<f32>>()
    };
    let layers = (0..config.layers)
        .map(|_| Layer {
            attn_norm: norm(random),
            q: linear(random, formats, q_width, hidden, 1.0),
            k: linear(random, formats, kv_width, hidden, 1.0),
            v: linear(random, formats, kv_width, hidden, 1.0),
            o: linear(random, formats, hidden, q_width, 0.7),
            sinks: (0..config.heads)
                .map(|_| 5.0 + 2.0 * random.unit())
                .collect(),
            post_attention_norm: norm(random),
            router: linear(random, &[Format::F32], config.experts, hidden, 1.5),
            gate: linear(random, experts, config.experts * width, hidden, 3.8),
            up: linear(random, experts, config.experts * width, hidden, 3.8),
            down: linear(random, experts, config.experts * hidden, width, 0.04),
        })
        .collect();
    let weights = Weights {
        token_embd: matrix(
            random,
            formats,
            config.vocab,
            hidden,
            (hidden as f32).sqrt(),
        ),
        layers,
        output_norm: norm(random),
        output: matrix(random, formats, config.vocab, hidden, 3.8),
    };
    Model { config, weights }
}

/// A shape with odd block counts (hidden 160 and width 96 are 5 and 3 blocks of 32) and the release's
/// RoPE; the window is short, so that a few dozen tokens pass its edge.
pub fn odd_shape() -> Config {
    Config {
        name: "random".into(),
        layers: 3,
        hidden: 160,
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
        experts: 6,
        experts_used: 4,
        expert_width: 96,
        vocab: 203,
        context: 131072,
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

fn linear(random: &mut Random, formats: &[Format], rows: usize, cols: usize, gain: f32) -> Linear {
    Linear {
        weight: matrix(random, formats, rows, cols, gain),
        bias: (0..rows).map(|_| 0.3 * random.unit()).collect(),
    }
}

/// Random values in one of `formats`; an element of W x is about `gain` times one of x.
fn matrix(random: &mut Random, formats: &[Format], rows: usize, cols: usize, gain: f32) -> Matrix {
    let format = formats[random.below(formats.len())];
    let std = gain / (cols as f32).sqrt();
    let mut data = Vec::with_capacity(rows * format.row_bytes(cols));
    for _ in 0..rows * cols / 32 {
        match format {
            Format::F32 => (0..32).for_each(|_| data.extend((std * random.bell()).to_le_bytes())),
            Format::F16 => {
                (0..32).for_each(|_| {
                    data.extend(half::f16::from_f32(std * random.bell()).to_le_bytes())
                });
            }
            Format::BF16 => {
                (0..32).for_each(|_| {
                    data.extend(half::bf16::from_f32(std * random.bell()).to_le_bytes())
                });
            }
            Format::Q8_0 => {
                let d = half::f16::from_f32(std / 37.0 * (1.0 + 0.5 * random.unit()));
                data.extend(d.to_le_bytes());
                data.extend((0..32).map(|_| (37.0 * random.bell()) as i8 as u8));
            }
            Format::MXFP4 => {
                // Codes at random have a root mean square of 2.9.
                data.push((127.0 + (std / 2.9).log2().round()) as u8 - random.below(2) as u8);
                data.extend((0..16).map(|_| random.next() as u8));
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
