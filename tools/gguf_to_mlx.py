#!/usr/bin/env python3
"""A GGUF file of MXFP4, Q8_0 and floats as a folder that mlx-lm loads, exactly.

    gguf_to_mlx.py IN.gguf OUT_DIR [--shards 1]

MXFP4 blocks are reordered without arithmetic. Q8_0 becomes affine 8-bit in groups of 32, scale = d and bias =
-128 d, in bf16 where that holds all of a matrix's scales, else in f32. What has no exact form is refused.
"""
import argparse
import pathlib

import gguf
import mlx_form
import numpy as np
from gguf import GGMLQuantizationType as Type
from make_tiny_models import GGUF_NAMES

LAYER = {short: own for own, short in GGUF_NAMES.items()}
WHOLE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}


def own_name(name):
    """`blk.0.attn_q.bias` -> `model.layers.0.self_attn.q_proj`, `bias`."""
    if not name.startswith("blk."):
        module, suffix = name.rsplit(".", 1)
        return WHOLE[module], suffix
    _, layer, module, suffix = name.split(".")
    if module == "attn_sinks":
        return f"model.layers.{layer}.self_attn.sinks", ""
    return f"model.layers.{layer}.{LAYER[module]}", suffix


def q8_0(tensor):
    """Codes, scales and biases of affine 8-bit."""
    rows = tensor.data.reshape(-1, tensor.data.shape[-1] // 34, 34)
    d = np.ascontiguousarray(rows[..., :2]).view("<f2")[..., 0].astype(np.float32)
    codes = np.ascontiguousarray(rows[..., 2:]) ^ 0x80
    kind = mlx_form.BF16 if mlx_form.is_bf16(d) and mlx_form.is_bf16(-128 * d) else np.ascontiguousarray
    return codes.reshape(len(rows), -1).view("<u4"), kind(d), kind(-128 * d)


def mxfp4(tensor):
    """Codes and scales as MLX packs them."""
    experts, rows = tensor.data.shape[:2]
    blocks = tensor.data.reshape(experts, rows, -1, 17)
    codes = np.concatenate([blocks[..., 1:] & 15, blocks[..., 1:] >> 4], axis=-1)
    packed = codes[..., ::2] | codes[..., 1::2] << 4
    return packed.reshape(experts, rows, -1).view("<u4"), np.ascontiguousarray(blocks[..., 0])


def main():
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("file", type=pathlib.Path)
    cli.add_argument("out", type=pathlib.Path)
    cli.add_argument("--shards", type=int, default=1)
    args = cli.parse_args()
    reader = gguf.GGUFReader(args.file)
    field = lambda key: reader.fields[key].contents()
    tensors, quantization = {}, {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    for tensor in reader.tensors:
        own, suffix = own_name(tensor.name)
        name = f"{own}.{suffix}" if suffix else own
        if tensor.tensor_type == Type.MXFP4:
            tensors[name], tensors[f"{own}.scales"] = mxfp4(tensor)
        elif tensor.tensor_type == Type.Q8_0:
            quantization[own] = {"group_size": 32, "bits": 8, "mode": "affine"}
            tensors[name], tensors[f"{own}.scales"], tensors[f"{own}.biases"] = q8_0(tensor)
        elif tensor.tensor_type in (Type.F32, Type.F16):
            tensors[name] = np.array(tensor.data)
        else:
            raise SystemExit(f"{tensor.name}: {tensor.tensor_type.name} has no exact form here")
    shape = {short: field(f"gpt-oss.{key}") for short, key in [
        ("layers", "block_count"), ("hidden", "embedding_length"), ("width", "expert_feed_forward_length"),
        ("heads", "attention.head_count"), ("kv_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"), ("experts", "expert_count"), ("experts_used", "expert_used_count"),
        ("window", "attention.sliding_window"), ("context", "context_length"), ("theta", "rope.freq_base"),
        ("factor", "rope.scaling.factor"), ("original", "rope.scaling.original_context_length")]}
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    shape["vocab"] = len(tokens)
    mlx_form.save_weights(tensors, args.out, args.shards)
    config = mlx_form.model_config(shape, quantization, field("tokenizer.ggml.eos_token_id"))
    config["rms_norm_eps"] = field("gpt-oss.attention.layer_norm_rms_epsilon")
    mlx_form.write_json(args.out / "config.json", config)
    tokenizer = mlx_form.tokenizer(tokens, kinds, field("tokenizer.ggml.merges"))
    mlx_form.write_json(args.out / "tokenizer.json", tokenizer)
    if template := reader.fields.get("tokenizer.chat_template"):
        (args.out / "chat_template.jinja").write_text(template.contents(), encoding="utf-8")


if __name__ == "__main__":
    main()
