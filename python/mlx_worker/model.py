"""The model: loaded as the released one is meant, and looked at from outside."""
import math
import os
import pathlib
import resource
import sys

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.utils import load_model

from hardware import is_gpu
from prefixes import trimmed


def wavelengths(config):
    """1 / inverse frequency, as the native engine has it (`Rope::inv_freq`): what the released model means. YaRN's
    correction range is rounded only where the file says so."""
    dim, theta, scaling = config["head_dim"], config["rope_theta"], config["rope_scaling"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    kept = theta ** -(np.arange(0, dim, 2) / dim)
    if factor <= 1:
        return 1 / kept

    def correction(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(scaling.get("beta_fast", 32.0)), correction(scaling.get("beta_slow", 1.0))
    if scaling.get("truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    slow = np.clip((np.arange(dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    return 1 / (kept / factor * slow + kept * (1 - slow))


def break_on_purpose(model, defect):
    """Seeded mistakes, for the tests of what compares engines."""
    if defect == "window":
        model.args.sliding_window -= 1
        model.model.window_size -= 1
    elif defect == "sinks":
        for layer in model.layers:
            layer.self_attn.sinks = mx.full(layer.self_attn.sinks.shape, -1e4, layer.self_attn.sinks.dtype)
    elif defect == "top3":
        for layer in model.layers:
            layer.mlp.num_experts_per_tok = 3
    elif defect not in (None, "rope"):
        raise ValueError(f"GOSSAMER_MLX_DEFECT: window, sinks, rope or top3, not {defect!r}")


def load(path, dtype, rope):
    """The model in memory: on a GPU in its own types, on the CPU in f32, where bf16 would be slow and inexact."""
    path = pathlib.Path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no config.json in it; expected an MLX model's folder")
    # mlx-lm takes a path for a pattern: `[` in a folder's name would find nothing.
    os.chdir(path)
    model, config = load_model(pathlib.Path("."), lazy=True)
    if config.get("model_type") != "gpt_oss":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, expected 'gpt_oss'")
    if dtype is None and not is_gpu():
        dtype = "float32"
    if dtype is not None:
        model.set_dtype({"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[dtype])
    defect = os.environ.get("GOSSAMER_MLX_DEFECT") or None
    break_on_purpose(model, defect)
    scaling = config.get("rope_scaling") or {}
    yarn = "yarn" in (scaling.get("rope_type"), scaling.get("type"))
    # mlx-lm rounds, whatever the file says.
    if yarn and rope != "upstream" and defect != "rope":
        freqs = mx.array(wavelengths(config).astype(np.float32))
        for layer in model.layers:
            layer.self_attn.rope._freqs = freqs
    mx.eval(model.parameters())
    # Kernels are compiled when they are first used, and memory is wired: not on somebody's first request.
    cache = model.make_cache()
    for tokens in ([[0] * 8], [[0]]):
        mx.eval(model(mx.array(tokens), cache=cache))
    return model


def zeros(model, tokens):
    """The caches of a beginning of so many tokens, as if it had been read."""
    args, caches = model.args, model.make_cache()
    # As wide as activations are.
    kind = model.model.norm.weight.dtype
    for cache in caches:
        keys = mx.zeros((1, args.num_key_value_heads, tokens, args.head_dim), kind)
        cache.update_and_fetch(keys, keys)
    caches = [trimmed(cache) for cache in caches]
    mx.eval([cache.state for cache in caches])
    return caches


def score(pipe, model, first, ids):
    """Raw logits after each position from `first` on."""
    caches = model.make_cache()
    for start in range(0, len(ids), 64):
        piece = ids[start : start + 64]
        logits = model(mx.array([piece]), cache=caches)[0]
        skip = max(first - start, 0)
        if skip < len(piece):
            rows_out(pipe, "scores", start + skip, logits[skip:])
        else:
            mx.eval([c.state for c in caches])
    pipe.send("scored")


def trace(pipe, model, ids):
    """The residual stream as each norm sees it: what a block's two halves leave, and the logits."""
    seen = []

    class Tap(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def __call__(self, x):
            seen.append(x[0])
            return self.norm(x)

    inner = model.model
    places = [(layer, name) for layer in inner.layers for name in ("input_layernorm", "post_attention_layernorm")]
    places.append((inner, "norm"))
    norms = [getattr(*place) for place in places]
    # Before the first block, after each half of each, in the order in which they are seen.
    stages = [(None, "embed")]
    for layer in range(len(inner.layers)):
        stages += [(layer, "out_proj_residual"), (layer, "expert_down_residual")]
    try:
        for (module, name), norm in zip(places, norms):
            setattr(module, name, Tap(norm))
        caches = model.make_cache()
        for start in range(0, len(ids), 64):
            seen.clear()
            logits = model(mx.array([ids[start : start + 64]]), cache=caches)[0]
            for (layer, stage), values in zip(stages, seen):
                rows_out(pipe, "piece", start, values, layer=layer, stage=stage)
            rows_out(pipe, "piece", start, logits, layer=None, stage="norm_lm_head")
    finally:
        for (module, name), norm in zip(places, norms):
            setattr(module, name, norm)
    pipe.send("traced")


def rows_out(pipe, op, first, values, **fields):
    values = np.array(values.astype(mx.float32))
    pipe.send(op, values.tobytes(), first=first, rows=values.shape[0], width=values.shape[1], **fields)


def resident_bytes():
    """This process's memory: now, and the most it had. Where the system does not tell the first, it is the second."""
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE"), most
    except OSError:
        return most, most


def memory():
    resident, most = resident_bytes()
    return {"active": mx.get_active_memory(), "peak": mx.get_peak_memory(), "pool": mx.get_cache_memory(),
            "resident": resident, "peak_resident": most}
