//! The gpt-oss shape, read from a file's metadata or a folder's config.json and checked.
//!
//! Invariant: a [`Config`] that exists is one that the kernels can run: dimensions are multiples of
//! what they step by, and so bounded that products of any few of them fit in a usize.

mod read;

pub(crate) use read::Fields;

/// gpt-oss clamps gate and up projections at this value.
pub const SWIGLU_LIMIT: f32 = 7.0;

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
    /// The clamp of SwiGLU, [`SWIGLU_LIMIT`] in every gpt-oss model (no metadata key names it).
    pub swiglu_limit: f32,
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
    /// Layers that attend to the last `window` positions only.
    pub fn sliding_layers(&self) -> usize {
        self.layers.div_ceil(2)
    }
    /// How far back a row depends on other rows where the full-attention layers' keys and values are
    /// given: each sliding layer looks `window - 1` positions back. 1,524 in gpt-oss-20b.
    pub fn receptive_field(&self) -> usize {
        self.sliding_layers() * (self.window - 1)
    }
    /// Query heads that share one KV head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

impl Rope {
    /// Inverse frequencies, `[head_dim / 2]`, computed in f64.
    ///
    /// YaRN keeps the fast dimensions (below `low`), divides the slow ones (above `high`) by
    /// `factor`, and ramps between. The release leaves `low` and `high` as they fall (8.093 and
    /// 17.398); [`Rope::rounded`] takes floor and ceiling.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        let (d, theta) = (head_dim as f64, self.theta as f64);
        let correction = |beta: f32| {
            let turns = self.original_context as f64 / (beta as f64 * std::f64::consts::TAU);
            d * turns.ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (correction(self.beta_fast), correction(self.beta_slow));
        if self.rounded {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        let width = (high - low).max(1e-3);
        (0..head_dim / 2)
            .map(|i| {
                let kept = theta.powf(-2.0 * i as f64 / d);
                if self.factor <= 1.0 {
                    return kept as f32;
                }
                let slow = ((i as f64 - low) / width).clamp(0.0, 1.0);
                (kept * (1.0 - slow) + kept / self.factor as f64 * slow) as f32
            })
            .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The two variants differ on the ramp only, most (by 76 %) in dimension 17.
    #[test]
    fn yarn_ramp_is_unrounded_unless_asked() {
        let mut rope = Rope {
            theta: 150000.0,
            factor: 32.0,
            original_context: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            rounded: false,
        };
        let released = rope.inv_freq(64);
        rope.rounded = true;
        let rounded = rope.inv_freq(64);
        let differs: Vec<usize> = (0..32).filter(|&i| released[i] != rounded[i]).collect();
        assert_eq!(differs, (9..=17).collect::<Vec<_>>());
        assert_eq!(released[0], 1.0);
        let relative = rounded[17] / released[17] - 1.0;
        assert!((relative.abs() - 0.76).abs() < 0.01, "{relative}");
        rope.factor = 1.0;
        assert_eq!(rope.inv_freq(64)[31], 150000f64.powf(-62.0 / 64.0) as f32);
    }
}
