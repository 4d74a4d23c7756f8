#!/usr/bin/env python3
"""One small random gpt-oss model in two or three forms with equal weights: GGUF, MLX and OpenAI's.

    make_tiny_models.py OUT_DIR [--seed N] [--tokens 300] [--dense q8|affine|bf16] [--shards 2]

writes OUT_DIR/tiny.gguf, OUT_DIR/mlx/{config.json,model.safetensors,tokenizer.json} and OUT_DIR/ids.json
(random token ids). Every value is exact in each form: MXFP4 blocks are repacked without arithmetic, Q8_0 is
MLX's affine 8-bit form with scale = d and bias = -128 d (groups of 32), the rest is f32. With `affine`,
dense matrices have arbitrary bf16 scales and biases a group of 64, as MLX's own converter makes them, and are
F32 in the GGUF file; with `bf16` they and all vectors are BF16, and OUT_DIR/hf is the model in the layout of
OpenAI's release. Numbers come from the raw stream of a counter-based generator and integer arithmetic, so that a seed gives
the same bytes on every machine. Magnitudes are chosen so that the clamp at 7, the sinks, the edge
of the window and the fourth expert all show in the logits.
"""
import argparse
import json
import pathlib

import gguf
import numpy as np

import mlx_form

SHAPE = dict(layers=4, hidden=192, heads=4, kv_heads=2, head_dim=64, experts=8, experts_used=4,
             width=128, vocab=512, window=128, context=131072, theta=150000.0, factor=32.0, original=4096)


class Random:
    """Integers from a raw counter-based stream: no floating point, no library distribution."""

    def __init__(self, seed):
        self.bits = np.random.Philox(seed)

    def bytes(self, *shape):
        count = int(np.prod(shape))
        raw = self.bits.random_raw((count + 7) // 8).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape).astype(np.int32)

    def bell(self, *shape):
        """Bell-shaped integers in -128..127, standard deviation 37."""
        return (self.bytes(*shape, 4).sum(-1) - 510) // 4

    def floats(self, low, high, *shape):
        """Uniform multiples of (high - low) / 256, exact in f32 for such bounds."""
        return (low + (high - low) * self.bytes(*shape) / 256).astype(np.float32)


class Q8:
    """Rows of 8-bit integers with an f16 scale a block of 32; standard deviation within a
    factor of two of `std`."""

    def __init__(self, random, std, rows, cols):
        # A power of two times 1 .. 1.996: distinct scales, exact in f16 and in f32.
        base = 2.0 ** np.floor(np.log2(std / 37 / 1.5))
        self.d = base * (1 + random.bytes(rows, cols // 32) / 256)
        self.q = np.maximum(random.bell(rows, cols // 32, 32), -127)
        assert (self.d.astype(np.float16) == self.d).all()

    def values(self):
        return (self.d[..., None] * self.q).reshape(len(self.d), -1).astype(np.float32)

    def gguf(self):
        d = self.d.astype("<f2")[..., None].view(np.uint8)
        blocks = np.concatenate([d, self.q.astype(np.int8).view(np.uint8)], axis=-1)
        return blocks.reshape(len(blocks), -1)

    def mlx(self, name):
        packed = (self.q + 128).astype(np.uint8).reshape(len(self.q), -1).view("<u4")
        d = self.d.astype(np.float32)
        return {f"{name}.weight": packed, f"{name}.scales": d, f"{name}.biases": -128 * d}


class Affine:
    """Rows of 8-bit integers with a bf16 scale and a bf16 bias a group of 64."""

    def __init__(self, random, std, rows, cols):
        base = np.float32(2.0 ** np.floor(np.log2(std / 37 / 1.5)))
        groups = (rows, cols // 64)
        self.scale = (base * (1 + random.bytes(*groups) // 2 / 128)).astype(np.float32)
        self.bias = (-base * (128 + random.bytes(*groups) // 2)).astype(np.float32)
        self.q = np.clip(random.bell(*groups, 64) + 128, 0, 255)
        # A row that training never touched, as MLX writes it: no scale to speak of, equal integers.
        self.scale[-1], self.bias[-1], self.q[-1] = np.float32(2.0**-30), base, 7

    def without_q8_0(self):
        """One group whose scale no f16 holds."""
        self.scale[0, 0] = np.float32(2.0**-30)
        return self

    def values(self):
        return (self.scale[..., None] * self.q.astype(np.float32) + self.bias[..., None]).reshape(len(self.q), -1)

    def mlx(self, name):
        packed = self.q.astype(np.uint8).reshape(len(self.q), -1).view("<u4")
        return {f"{name}.weight": packed, f"{name}.scales": mlx_form.BF16(self.scale),
                f"{name}.biases": mlx_form.BF16(self.bias)}


class Dense:
    """Rows of bf16 values."""

    def __init__(self, random, std, rows, cols):
        self.all = bf16((std / 37 * (random.bell(rows, cols) + random.bytes(rows, cols) / 256)).astype(np.float32))

    def values(self):
        return self.all

    def gguf(self):
        return mlx_form.BF16(self.all).bits.view(np.uint8)

    def mlx(self, name):
        return {f"{name}.weight": mlx_form.BF16(self.all)}


def bf16(values):
    """Cut to bf16."""
    return (values.view(np.uint32) & 0xffff0000).view(np.float32)


class Mxfp4:
    """[experts, rows, cols] of e2m1 codes with an e8m0 scale a block of 32."""

    CODES = np.array([0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 6, 7])

    def __init__(self, random, std, experts, rows, cols):
        middle = 127 + int(np.round(np.log2(std / 2.5)))
        self.e = (middle - 1 + random.bytes(experts, rows, cols // 32) % 3).astype(np.uint8)
        draw = random.bytes(experts, rows, cols // 32, 32)
        self.codes = (self.CODES[draw & 15] | (draw >> 4 & 8)).astype(np.uint8)

    def gguf(self):
        qs = self.codes[..., :16] | self.codes[..., 16:] << 4
        blocks = np.concatenate([self.e[..., None], qs], axis=-1)
        return blocks.reshape(*blocks.shape[:2], -1)

    def mlx(self, name):
        packed = (self.codes[..., ::2] | self.codes[..., 1::2] << 4).reshape(*self.codes.shape[:2], -1)
        return {f"{name}.weight": packed.view("<u4"), f"{name}.scales": self.e}

    def blocks(self):
        """As OpenAI's release has them."""
        packed = self.codes[..., ::2] | self.codes[..., 1::2] << 4
        return {"_blocks": packed, "_scales": self.e}


def make(seed, dense="q8"):
    """The model's parts by MLX module name: matrices or f32 arrays."""
    s, random = SHAPE, Random(seed)
    Q8 = DENSE[dense]
    hidden, q_width, kv_width = s["hidden"], s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    parts = {
        "model.embed_tokens": Q8(random, 1.0, s["vocab"], hidden),
        "lm_head": Q8(random, 0.3, s["vocab"], hidden),
        "model.norm.weight": random.floats(0.5, 1.5, hidden),
    }
    for layer in range(s["layers"]):
        at = f"model.layers.{layer}."
        for name, rows, cols, std in [("q", q_width, hidden, 0.06), ("k", kv_width, hidden, 0.06),
                                      ("v", kv_width, hidden, 0.08), ("o", hidden, q_width, 0.05)]:
            parts[f"{at}self_attn.{name}_proj"] = Q8(random, std, rows, cols)
            parts[f"{at}self_attn.{name}_proj.bias"] = random.floats(-0.5, 0.5, rows)
        parts[at + "self_attn.sinks"] = random.floats(3.0, 8.0, s["heads"])
        parts[at + "input_layernorm.weight"] = random.floats(0.5, 1.5, hidden)
        parts[at + "post_attention_layernorm.weight"] = random.floats(0.5, 1.5, hidden)
        parts[at + "mlp.router"] = Q8(random, 0.12, s["experts"], hidden)
        parts[at + "mlp.router.bias"] = random.floats(-0.5, 0.5, s["experts"])
        for name, rows, cols, std in [("gate", s["width"], hidden, 0.3), ("up", s["width"], hidden, 0.3),
                                      ("down", hidden, s["width"], 0.003)]:
            parts[f"{at}mlp.experts.{name}_proj"] = Mxfp4(random, std, s["experts"], rows, cols)
            parts[f"{at}mlp.experts.{name}_proj.bias"] = random.floats(-0.5, 0.5, s["experts"], rows)
    if dense == "affine":
        parts["model.layers.1.self_attn.k_proj"].without_q8_0()
    if dense == "bf16":
        parts = {n: bf16(p) if isinstance(p, np.ndarray) else p for n, p in parts.items()}
    return parts, random


DENSE = {"q8": Q8, "affine": Affine, "bf16": Dense}

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm", "mlp.router": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps", "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}


def gguf_name(name):
    """`model.layers.0.self_attn.q_proj.bias` -> `blk.0.attn_q.bias`; a module without suffix is a weight."""
    whole = {"model.embed_tokens": "token_embd.weight", "lm_head": "output.weight",
             "model.norm.weight": "output_norm.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    if rest == "self_attn.sinks":
        return f"blk.{layer}.attn_sinks.weight"
    module, suffix = (rest.rsplit(".", 1) if rest.endswith((".bias", ".weight")) else (rest, "weight"))
    return f"blk.{layer}.{GGUF_NAMES[module]}.{suffix}"


def vocabulary(size):
    """256 bytes as byte-level characters, pairs of letters with their merges, the Harmony specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    character = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    specials = ["startoftext", "endoftext", "reserved_200000", "reserved_200001", "return", "constrain",
                "reserved_200004", "channel", "start", "end", "message", "reserved_200009", "reserved_200010",
                "reserved_200011", "call", "endofprompt"]
    letters = "etaoinshrdlucmwf"
    pairs = [(a, b) for a in letters for b in letters][: size - 256 - len(specials)]
    tokens = [character[b] for b in range(256)] + [a + b for a, b in pairs]
    kinds = [gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(specials)
    return tokens + [f"<|{s}|>" for s in specials], kinds, [f"{a} {b}" for a, b in pairs]


def write_gguf(parts, path):
    s = SHAPE
    w = gguf.GGUFWriter(path, "gpt-oss")
    w.add_name("tiny random gpt-oss")
    w.add_context_length(s["context"])
    w.add_embedding_length(s["hidden"])
    w.add_block_count(s["layers"])
    w.add_feed_forward_length(s["width"])
    w.add_expert_feed_forward_length(s["width"])
    w.add_head_count(s["heads"])
    w.add_head_count_kv(s["kv_heads"])
    w.add_key_length(s["head_dim"])
    w.add_value_length(s["head_dim"])
    w.add_expert_count(s["experts"])
    w.add_expert_used_count(s["experts_used"])
    w.add_sliding_window(s["window"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(s["theta"])
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(s["factor"])
    w.add_rope_scaling_orig_ctx_len(s["original"])
    tokens, kinds, merges = vocabulary(s["vocab"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-4o")
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_token_merges(merges)
    w.add_bos_token_id(tokens.index("<|startoftext|>"))
    w.add_eos_token_id(tokens.index("<|return|>"))
    w.add_add_bos_token(False)
    for name, part in parts.items():
        name = gguf_name(name)
        if isinstance(part, Mxfp4):
            w.add_tensor(name, part.gguf(), raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        elif isinstance(part, Q8) and "ffn_gate_inp" not in name:
            w.add_tensor(name, part.gguf(), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        elif isinstance(part, Dense) and "ffn_gate_inp" not in name:
            w.add_tensor(name, part.gguf(), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            w.add_tensor(name, part if isinstance(part, np.ndarray) else part.values())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_mlx(parts, folder, shards=1):
    tensors, quantization = {}, {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for name, part in parts.items():
        if isinstance(part, (Q8, Affine)):
            group = 32 if isinstance(part, Q8) else 64
            quantization[name] = {"group_size": group, "bits": 8, "mode": "affine"}
        tensors |= {name: part} if isinstance(part, np.ndarray) else part.mlx(name)
    mlx_form.save_weights(tensors, folder, shards)
    write_rest(folder, quantization)


def write_hf(parts, folder):
    """OpenAI's layout: experts as blocks and scales, rows of gate and up in turns, the rest BF16."""
    def in_turns(gate, up):
        return np.stack([gate, up], axis=2).reshape(gate.shape[0], -1, *gate.shape[2:])
    tensors = {}
    for name, part in parts.items():
        if "experts" not in name:
            tensors |= {name: mlx_form.BF16(part)} if isinstance(part, np.ndarray) else part.mlx(name)
    for layer in range(SHAPE["layers"]):
        at = f"model.layers.{layer}.mlp.experts."
        gate, up, down = (parts[f"{at}{part}_proj"].blocks() for part in ("gate", "up", "down"))
        for suffix in gate:
            tensors[f"{at}gate_up_proj{suffix}"] = in_turns(gate[suffix], up[suffix])
            tensors[f"{at}down_proj{suffix}"] = down[suffix]
        gate, up, down = (parts[f"{at}{part}_proj.bias"] for part in ("gate", "up", "down"))
        tensors[at + "gate_up_proj_bias"] = mlx_form.BF16(in_turns(gate, up))
        tensors[at + "down_proj_bias"] = mlx_form.BF16(down)
    mlx_form.save_weights(tensors, folder)
    write_rest(folder, None)


def write_rest(folder, quantization):
    tokens, kinds, merges = vocabulary(SHAPE["vocab"])
    config = mlx_form.model_config(SHAPE, quantization, tokens.index("<|return|>"))
    mlx_form.write_json(folder / "config.json", config)
    mlx_form.write_json(folder / "tokenizer.json", mlx_form.tokenizer(tokens, kinds, merges))


def main():
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("out", type=pathlib.Path)
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--tokens", type=int, default=300)
    cli.add_argument("--dense", choices=DENSE, default="q8")
    cli.add_argument("--shards", type=int, default=1)
    args = cli.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    parts, random = make(args.seed, args.dense)
    write_gguf(parts, args.out / "tiny.gguf")
    write_mlx(parts, args.out / "mlx", args.shards)
    if args.dense == "bf16":
        write_hf(parts, args.out / "hf")
    ids = (random.bytes(args.tokens) * 256 + random.bytes(args.tokens)) % SHAPE["vocab"]
    (args.out / "ids.json").write_text(json.dumps(ids.tolist()))


if __name__ == "__main__":
    main()
