"""What a folder of safetensors is made of, for the scripts beside this one: weights, config.json, tokenizer.json."""
import json

import numpy as np
from safetensors import TensorSpec, serialize_file

# o200k's split, as tokenizer.json files spell it.
SPLIT = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


class BF16:
    """f32 values that bf16 holds, to be written as such."""

    def __init__(self, values):
        self.bits = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype("<u2")
        assert np.array_equal((self.bits.astype(np.uint32) << 16).view(np.float32), values)


def is_bf16(values):
    return not (np.ascontiguousarray(values, np.float32).view(np.uint32) & 0xffff).any()


def save_weights(tensors, folder, shards=1):
    """model.safetensors, or so many shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    # A specification holds an address: the arrays stay here until all is written.
    arrays = {n: np.ascontiguousarray(t.bits if isinstance(t, BF16) else t) for n, t in tensors.items()}
    entries = {}
    for name, array in arrays.items():
        dtype = "bfloat16" if isinstance(tensors[name], BF16) else array.dtype.name
        entries[name] = TensorSpec(dtype=dtype, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes)
    if shards == 1:
        return serialize_file(entries, folder / "model.safetensors", metadata={"format": "mlx"})
    names, where = list(entries), {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
        serialize_file({n: entries[n] for n in part}, folder / file, metadata={"format": "mlx"})
        where |= {n: file for n in part}
    index = {"metadata": {"total_size": sum(a.nbytes for a in arrays.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def model_config(shape, quantization, eos):
    """config.json; `shape` as in make_tiny_models.py, `quantization` MLX's entries or None."""
    config = {
        "model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "num_hidden_layers": shape["layers"],
        "hidden_size": shape["hidden"], "intermediate_size": shape["width"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "head_dim": shape["head_dim"],
        "num_local_experts": shape["experts"], "num_experts_per_tok": shape["experts_used"],
        "vocab_size": shape["vocab"], "rms_norm_eps": 1e-5, "sliding_window": shape["window"],
        "max_position_embeddings": shape["context"], "rope_theta": shape["theta"], "swiglu_limit": 7.0,
        "rope_scaling": {"rope_type": "yarn", "factor": shape["factor"], "beta_fast": 32.0, "beta_slow": 1.0,
                         "original_max_position_embeddings": shape["original"], "truncate": False},
        "layer_types": (["sliding_attention", "full_attention"] * shape["layers"])[:shape["layers"]],
        "tie_word_embeddings": False, "eos_token_id": eos,
    }
    if quantization:
        return config | {"quantization": quantization, "quantization_config": quantization}
    return config | {"quantization_config": {"quant_method": "mxfp4"}}


def tokenizer(tokens, kinds, merges):
    """tokenizer.json; kinds are ggml's: 1 ordinary, 5 padding (left out), others special."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [
            {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind not in (1, 5)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind == 1},
                  "merges": [merge.split(" ") for merge in merges]},
    }


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
