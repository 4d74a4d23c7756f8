//! The gpt-oss shape, read from a file's metadata and checked.

/// The model's shape. Field names follow docs/model.md.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Name from the file, or its architecture.
    pub name: String,
    /// Transformer layers.
    pub layers: usize,
    /// Residual width.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head (even; 64 in the release).
    pub head_dim: usize,
    /// Experts a layer.
    pub experts: usize,
    /// Experts a token uses.
    pub experts_used: usize,
    /// Expert width.
    pub expert_width: usize,
    /// Vocabulary, padding included.
    pub vocab: usize,
    /// Longest context the model was made for.
    pub context: usize,
    /// Sliding window on even layers, the token itself included.
    pub window: usize,
    /// RMSNorm epsilon.
    pub rms_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
}

/// RoPE with YaRN scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base, 150000.
    pub theta: f32,
    /// YaRN factor, 32; 1 means plain RoPE.
    pub factor: f32,
    /// Context before scaling, 4096.
    pub original_context: usize,
    /// YaRN beta_fast, 32.
    pub beta_fast: f32,
    /// YaRN beta_slow, 1.
    pub beta_slow: f32,
    /// Round the correction range as llama.cpp and mlx-lm do (`--rope-compat`); the release does not.
    pub rounded: bool,
}

impl Config {
    /// Whether layer `layer` attends to the last `window` positions only (0, 2, 4 …).
    pub fn is_sliding(&self, layer: usize) -> bool {
        layer.is_multiple_of(2)
    }
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

impl Rope {
    /// Inverse frequencies, `[head_dim / 2]`, computed in f64.
    pub fn inv_freq(&self, _head_dim: usize) -> Vec<f32> {
        unimplemented!()
    }
    /// What cos and sin are multiplied by: `0.1 ln(factor) + 1`.
    pub fn concentration(&self) -> f32 {
        if self.factor <= 1.0 {
            1.0
        } else {
            0.1 * self.factor.ln() + 1.0
        }
    }
}
