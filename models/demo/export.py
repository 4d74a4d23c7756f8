"""Writes the trained weights as GGUF: experts MXFP4, the other matrices Q8_0, the rest F32.

    python3 export.py CHECKPOINT_DIR demo.gguf

Needs numpy and gguf. Tensor names and metadata are those of the public gpt-oss files.
"""

import os
import sys

import gguf
import numpy as np

import vocab
from requantize import Q8_0, q8_0
from shape import *  # noqa: F403 - the model's shape

MXFP4 = gguf.GGMLQuantizationType.MXFP4


def mxfp4(w):
    """Blocks of 32: the smallest scale 2^e that clips nothing above 7 * 2^e, values to the nearest of the grid.

    The same rule as train.py's: the quantizer of gguf picks another scale, so the blocks are made here and read back
    with gguf's dequantizer.
    """
    b = w.reshape(-1, 32)
    amax = np.abs(b).max(-1, keepdims=True)
    mantissa, exponent = np.frexp(amax)
    e = np.where(mantissa <= 0.875, exponent - 3, exponent - 2)
    scaled = b / np.ldexp(np.float32(1), e)
    grid = np.array(E2M1, np.float32)
    code = np.searchsorted((grid[1:] + grid[:-1]) / 2, np.abs(scaled)).astype(np.uint8)
    value = grid[code] * np.sign(scaled) * np.ldexp(np.float32(1), e)
    code |= np.where((scaled < 0) & (code > 0), 8, 0).astype(np.uint8)
    stored = np.where(amax > 0, e + 127, 0)
    assert stored.min() >= 0 and stored.max() <= 254
    blocks = np.concatenate([stored.astype(np.uint8), code[:, :16] | (code[:, 16:] << 4)], -1)
    data = blocks.reshape(*w.shape[:-1], -1)
    assert np.array_equal(gguf.quants.dequantize(data, MXFP4), value.reshape(w.shape))
    return data


def byte_unicode():
    """GPT-2's spelling of bytes as printable characters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, n = {}, 0
    for b in range(256):
        if b in plain:
            table[b] = chr(b)
        else:
            table[b] = chr(256 + n)
            n += 1
    return table


def tokenizer(w):
    spell = byte_unicode()
    ordinary = vocab.tokens()
    known = set(ordinary)
    texts = ["".join(spell[b] for b in t) for t in ordinary]
    types = [gguf.TokenType.NORMAL] * len(texts)
    special = {i: t for t, i in {**vocab.SPECIALS, **vocab.RESERVED}.items()}
    for i in range(vocab.ORDINARY, vocab.SIZE):
        texts.append(special.get(i, f"[PAD{i}]"))
        types.append(gguf.TokenType.CONTROL if i in special else gguf.TokenType.UNUSED)
    # Every pair of tokens that makes a token, in the order of what it makes: merging the lowest id.
    merges = []
    for t in ordinary[256:]:
        merges += ["".join(spell[b] for b in t[:i]) + " " + "".join(spell[b] for b in t[i:])
                   for i in range(1, len(t)) if t[:i] in known and t[i:] in known]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-4o")
    w.add_token_list(texts)
    w.add_token_types(types)
    w.add_token_merges(merges)
    w.add_bos_token_id(vocab.SPECIALS["<|startoftext|>"])
    w.add_eos_token_id(vocab.SPECIALS["<|return|>"])
    w.add_pad_token_id(vocab.SPECIALS["<|endoftext|>"])


def main():
    source, target = sys.argv[1:]
    p = dict(np.load(os.path.join(source, "rest.npz")))
    p.update((k, np.load(os.path.join(source, k + ".npy"))) for k in ("gate", "up", "down"))
    w = gguf.GGUFWriter(target, "gpt-oss")
    w.add_name("gossamer-demo")
    w.add_description("A tiny demonstration model in the shape of gpt-oss, made by the scripts beside it")
    w.add_license("MIT OR Apache-2.0")
    w.add_block_count(LAYERS)
    w.add_context_length(CONTEXT)
    w.add_embedding_length(HIDDEN)
    w.add_feed_forward_length(WIDTH)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_key_length(HEAD_DIM)
    w.add_value_length(HEAD_DIM)
    w.add_layer_norm_rms_eps(EPS)
    w.add_sliding_window(WINDOW)
    w.add_expert_count(EXPERTS)
    w.add_expert_used_count(TOP_K)
    w.add_expert_feed_forward_length(WIDTH)
    w.add_rope_freq_base(THETA)
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(FACTOR)
    w.add_rope_scaling_orig_ctx_len(ORIGINAL_CONTEXT)
    w.add_file_type(gguf.LlamaFileType.MOSTLY_MXFP4_MOE)
    w.add_quantization_version(2)
    tokenizer(w)

    def f32(name, a):
        w.add_tensor(name, np.ascontiguousarray(a, np.float32))

    def q8(name, a):
        w.add_tensor(name, q8_0(a), raw_dtype=Q8_0)

    q8("token_embd.weight", p["embd"])
    for i in range(LAYERS):
        n = f"blk.{i}."
        f32(n + "attn_norm.weight", p["attn_norm"][i])
        for short, full in (("q", "attn_q"), ("k", "attn_k"), ("v", "attn_v"), ("o", "attn_output")):
            q8(n + full + ".weight", p[short][i])
            f32(n + full + ".bias", p[short + "_bias"][i])
        f32(n + "attn_sinks.weight", p["sinks"][i])
        f32(n + "post_attention_norm.weight", p["mlp_norm"][i])
        f32(n + "ffn_gate_inp.weight", p["router"][i])
        f32(n + "ffn_gate_inp.bias", p["router_bias"][i])
        for k in ("gate", "up", "down"):
            w.add_tensor(n + f"ffn_{k}_exps.weight", mxfp4(np.ascontiguousarray(p[k][i])), raw_dtype=MXFP4)
            f32(n + f"ffn_{k}_exps.bias", p[k + "_bias"][i])
    f32("output_norm.weight", p["output_norm"])
    q8("output.weight", p["output"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    print(target, os.path.getsize(target), "bytes")


if __name__ == "__main__":
    main()
