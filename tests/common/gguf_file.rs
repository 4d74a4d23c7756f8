//! Writes small GGUF files for tests, byte by byte from the format's description: knows nothing of
//! the reader, and can be told to lie.
#![allow(dead_code)] // Each test file uses its own part.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

/// Ids of tensor types, with values and bytes a block.
pub const F32: (u32, usize, usize) = (0, 1, 4);
pub const F16: (u32, usize, usize) = (1, 1, 2);
pub const Q4_0: (u32, usize, usize) = (2, 32, 18);
pub const Q8_0: (u32, usize, usize) = (8, 32, 34);
pub const Q6_K: (u32, usize, usize) = (14, 256, 210);
pub const BF16: (u32, usize, usize) = (30, 1, 2);
pub const MXFP4: (u32, usize, usize) = (39, 32, 17);

/// Random numbers (splitmix64): the same seed gives the same.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    /// Below `n`; 0 when nothing is.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One tensor of the directory to write.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: (u32, usize, usize),
    /// Its bytes; `None` leaves a hole of the right size.
    pub data: Option<Vec<u8>>,
    /// Written in place of the true offset.
    pub offset: Option<u64>,
}

impl Tensor {
    /// Bytes of its data: what it was filled with, else what its dimensions say; one block's where
    /// they are a lie that no file could hold.
    pub fn bytes(&self) -> u64 {
        if let Some(data) = &self.data {
            return data.len() as u64;
        }
        let values = self.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let (_, block_values, block_bytes) = self.kind;
        let blocks = values
            .filter(|n| *n < 1 << 50)
            .map_or(1, |n| n / block_values as u64);
        blocks * block_bytes as u64
    }
}

/// A file in the making.
#[derive(Clone)]
pub struct GgufFile {
    pub version: u32,
    pub alignment: u64,
    /// Key, value type and the value's bytes.
    pub entries: Vec<(String, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

/// A length and the bytes.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

impl GgufFile {
    pub fn new() -> GgufFile {
        GgufFile {
            version: 3,
            alignment: 32,
            entries: Vec::new(),
            tensors: Vec::new(),
        }
    }

    pub fn entry(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.entries.retain(|(k, ..)| k != key);
        self.entries.push((key.to_owned(), kind, value));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.entry(key, 4, value.to_le_bytes().to_vec());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.entry(key, 6, value.to_le_bytes().to_vec());
    }

    pub fn str(&mut self, key: &str, value: &str) {
        self.entry(key, 8, string(value));
    }

    pub fn strings<S: AsRef<[u8]>>(&mut self, key: &str, values: impl Iterator<Item = S>) {
        let values: Vec<_> = values.map(string).collect();
        let mut bytes = 8u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.concat());
        self.entry(key, 9, bytes);
    }

    pub fn tensor(&mut self, name: &str, dims: &[u64], kind: (u32, usize, usize)) {
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dims: dims.to_vec(),
            kind,
            data: None,
            offset: None,
        });
    }

    /// Gives every tensor bytes from `random`, finite in every type used here.
    pub fn fill(&mut self, random: &mut Random) {
        for t in &mut self.tensors {
            let mut data: Vec<u8> = (0..t.bytes()).map(|_| random.byte()).collect();
            for block in data.chunks_exact_mut(t.kind.2) {
                match t.kind {
                    F32 => block[3] = block[3] & 0x80 | 0x3d,
                    F16 | Q8_0 | Q4_0 => block[1] = block[1] & 0x80 | 0x24,
                    BF16 => block[1] = block[1] & 0x80 | 0x3d,
                    Q6_K => block[209] = block[209] & 0x80 | 0x18,
                    MXFP4 => block[0] = block[0] % 8 + 116,
                    _ => {}
                }
            }
            t.data = Some(data);
        }
    }

    /// Header and directory, padded to the alignment, and the length of the data after it.
    pub fn head(&self) -> (Vec<u8>, u64) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            out.extend(string(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0u64;
        for t in &self.tensors {
            out.extend(string(&t.name));
            out.extend((t.dims.len() as u32).to_le_bytes());
            t.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(t.kind.0.to_le_bytes());
            out.extend(t.offset.unwrap_or(offset).to_le_bytes());
            offset += t.bytes().next_multiple_of(self.alignment);
        }
        let padded = (out.len() as u64).next_multiple_of(self.alignment);
        out.resize(padded as usize, 0);
        (out, offset)
    }

    /// The whole file; holes are zeros.
    pub fn bytes(&self) -> Vec<u8> {
        let (mut out, _) = self.head();
        for t in &self.tensors {
            let end = out.len() + t.bytes() as usize;
            out.extend(t.data.as_deref().unwrap_or(&[]));
            out.resize(end.next_multiple_of(self.alignment as usize), 0);
        }
        out
    }

    /// Writes the header and leaves the weights a hole: a file of true size that takes no room.
    pub fn write_sparse(&self, path: &Path) -> io::Result<u64> {
        let (head, data) = self.head();
        let mut file = File::create(path)?;
        file.write_all(&head)?;
        file.set_len(head.len() as u64 + data)?;
        Ok(head.len() as u64 + data)
    }
}

/// A gpt-oss shape to make a file of.
#[derive(Clone)]
pub struct Shape {
    pub arch: &'static str,
    pub layers: u64,
    pub hidden: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    pub experts: u64,
    pub experts_used: u64,
    pub expert_width: u64,
    pub vocab: u64,
}

impl Shape {
    pub const TINY: Shape = Shape {
        arch: "gpt-oss",
        layers: 2,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        experts: 4,
        experts_used: 2,
        expert_width: 32,
        vocab: 96,
    };
    pub const OSS_20B: Shape = Shape {
        arch: "gpt-oss",
        layers: 24,
        hidden: 2880,
        heads: 64,
        kv_heads: 8,
        head_dim: 64,
        experts: 32,
        experts_used: 4,
        expert_width: 2880,
        vocab: 201_088,
    };
    pub const OSS_120B: Shape = Shape {
        layers: 36,
        experts: 128,
        ..Shape::OSS_20B
    };

    /// Metadata and directory as llama.cpp's converter writes them: experts MXFP4, other matrices
    /// `dense`, the rest F32.
    pub fn file(&self, dense: (u32, usize, usize)) -> GgufFile {
        let mut f = GgufFile::new();
        f.str("general.architecture", self.arch);
        f.str("general.name", "Test model");
        for (key, value) in [
            ("block_count", self.layers),
            ("context_length", 131_072),
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.expert_width),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("attention.sliding_window", 128),
            ("expert_count", self.experts),
            ("expert_used_count", self.experts_used),
            ("expert_feed_forward_length", self.expert_width),
            ("rope.scaling.original_context_length", 4096),
        ] {
            f.u32(&format!("{}.{key}", self.arch), value as u32);
        }
        let key = |key: &str| format!("{}.{key}", self.arch);
        f.f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
        f.f32(&key("rope.freq_base"), 150_000.0);
        f.f32(&key("rope.scaling.factor"), 32.0);
        f.str(&key("rope.scaling.type"), "yarn");
        f.strings(
            "tokenizer.ggml.tokens",
            (0..self.vocab).map(|i| format!("t{i}")),
        );
        f.tensor("token_embd.weight", &[self.hidden, self.vocab], dense);
        for layer in 0..self.layers {
            self.layer(&mut f, layer, dense);
        }
        f.tensor("output_norm.weight", &[self.hidden], F32);
        f.tensor("output.weight", &[self.hidden, self.vocab], dense);
        f
    }

    fn layer(&self, f: &mut GgufFile, layer: u64, dense: (u32, usize, usize)) {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        f.tensor(&name("attn_norm.weight"), &[self.hidden], F32);
        for (part, input, output) in [
            ("attn_q", self.hidden, q),
            ("attn_k", self.hidden, kv),
            ("attn_v", self.hidden, kv),
            ("attn_output", q, self.hidden),
        ] {
            f.tensor(&name(&format!("{part}.weight")), &[input, output], dense);
            f.tensor(&name(&format!("{part}.bias")), &[output], F32);
        }
        f.tensor(&name("attn_sinks.weight"), &[self.heads], F32);
        f.tensor(&name("post_attention_norm.weight"), &[self.hidden], F32);
        f.tensor(
            &name("ffn_gate_inp.weight"),
            &[self.hidden, self.experts],
            F32,
        );
        f.tensor(&name("ffn_gate_inp.bias"), &[self.experts], F32);
        for (part, input, output) in [
            ("ffn_gate_exps", self.hidden, self.expert_width),
            ("ffn_up_exps", self.hidden, self.expert_width),
            ("ffn_down_exps", self.expert_width, self.hidden),
        ] {
            f.tensor(
                &name(&format!("{part}.weight")),
                &[input, output, self.experts],
                MXFP4,
            );
            f.tensor(&name(&format!("{part}.bias")), &[output, self.experts], F32);
        }
    }
}
