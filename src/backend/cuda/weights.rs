//! A model's weights on the device.

use super::tiles::Tiles;

/// Where one layer's weights are. Vectors are f32 in the file's order.
#[derive(Debug, Clone, Copy)]
pub struct LayerWeights {
    /// `[hidden]`.
    pub attn_norm: u64,
    /// q, k and v as one matrix, [`Order::Heads`](super::tiles::Order::Heads).
    pub qkv: Tiles,
    /// `[heads + 2 kv_heads, 64]`.
    pub qkv_bias: u64,
    /// `[heads]`.
    pub sinks: u64,
    /// The output projection.
    pub out: Tiles,
    /// `[hidden]`.
    pub out_bias: u64,
    /// `[hidden]`.
    pub post_norm: u64,
    /// `[experts, hidden]`, f32.
    pub router: u64,
    /// `[experts]`.
    pub router_bias: u64,
    /// gate and up of each expert as one matrix, [`Order::Pairs`](super::tiles::Order::Pairs).
    pub gate_up: Tiles,
    /// `[experts, expert_width]`.
    pub gate_bias: u64,
    /// `[experts, expert_width]`.
    pub up_bias: u64,
    /// Of each expert.
    pub down: Tiles,
    /// `[experts, hidden]`.
    pub down_bias: u64,
}

/// Where a model's weights are.
pub struct DeviceWeights {
    /// By layer.
    pub layers: Vec<LayerWeights>,
    /// `[vocab, hidden]`, rows as in the file.
    pub token_embd: u64,
    /// Its type, ggml's id.
    pub embd_format: i32,
    /// `[hidden]`.
    pub output_norm: u64,
    /// The LM head.
    pub output: Tiles,
    /// f32 `[context, 2, 32]`: cos, then sin, times the concentration.
    pub rope: u64,
    /// Device memory of all, in bytes.
    pub bytes: u64,
}
