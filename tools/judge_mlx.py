#!/usr/bin/env python3
"""mlx-lm's teacher-forced logits of a model in MLX form, in f32 on the CPU.

    judge_mlx.py MODEL_DIR IDS.json OUT.npy [--rope rounded|released] [--golden]

mlx-lm rounds YaRN's correction range whatever the config says; `--rope released` replaces its
frequencies by the unrounded ones of the released model. OUT is f32 [tokens, vocabulary]. With
`--golden` it holds some positions only, and OUT.json beside it says which, and what made them.
"""
import argparse
import hashlib
import json
import math
import pathlib

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.utils import load_model

# The start, both sides of the window's edge, the end.
GOLDEN_POSITIONS = [*range(8), *range(120, 140), 200, 201, *range(290, 300)]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def released_wavelengths(config):
    """1 / inverse frequency of the released model: YaRN with `truncate: false`."""
    dim, theta, scaling = config["head_dim"], config["rope_theta"], config["rope_scaling"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]

    def correction(beta):
        return dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(scaling["beta_fast"]), correction(scaling["beta_slow"])
    kept = theta ** -(np.arange(0, dim, 2) / dim)
    slow = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return 1 / (kept / factor * slow + kept * (1 - slow))


def main():
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("model", type=pathlib.Path)
    cli.add_argument("ids", type=pathlib.Path)
    cli.add_argument("out", type=pathlib.Path)
    cli.add_argument("--rope", choices=["rounded", "released"], default="rounded")
    cli.add_argument("--golden", action="store_true")
    args = cli.parse_args()
    mx.set_default_device(mx.cpu)
    model, config = load_model(args.model)
    model.set_dtype(mx.float32)
    if args.rope == "released":
        wavelengths = mx.array(released_wavelengths(config).astype(np.float32))
        for layer in model.layers:
            layer.self_attn.rope._freqs = wavelengths
    ids = json.loads(args.ids.read_text())
    logits = model(mx.array([ids]), cache=model.make_cache())[0]
    assert logits.dtype == mx.float32
    logits = np.array(logits)
    if args.golden:
        logits = logits[GOLDEN_POSITIONS]
        args.out.with_suffix(".json").write_text(json.dumps({
            "judge": "mlx-lm",
            "version": f"mlx-lm {mlx_lm.__version__}, mlx {mx.__version__}",
            "command": f"tools/judge_mlx.py mlx {args.ids.name} {args.out.name} --rope {args.rope} --golden",
            "inputs": "tools/make_tiny_models.py OUT_DIR --seed 1",
            "model_sha256": sha256(args.model / "model.safetensors"),
            "ids_sha256": sha256(args.ids),
            "positions": GOLDEN_POSITIONS,
        }) + "\n")
    np.save(args.out, logits)


if __name__ == "__main__":
    main()
