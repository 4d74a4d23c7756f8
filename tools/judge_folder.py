#!/usr/bin/env python3
"""Judges the reading of folders of safetensors, by MLX and by Hugging Face's `tokenizers`.

    judge_folder.py values FOLDER OUT_DIR       what mx.dequantize makes of every quantized matrix, from scales and
                                                biases in f32, as OUT_DIR/MODULE.f32
    judge_folder.py release FOLDER OUT_DIR      the same of OpenAI's layout: e2m1 codes times powers of two, by numpy
    judge_folder.py quantize FOLDER OUT_DIR BITS  what mlx-lm's own converter makes of FOLDER: affine, groups of 64
    judge_folder.py tokens FOLDER TEXTS OUT     ids of each text of a JSON list, specials as text, as JSON
"""
import json
import pathlib
import sys


def values(folder, out):
    import mlx.core as mx
    import numpy as np
    mx.set_default_device(mx.cpu)
    config = json.loads((folder / "config.json").read_text())["quantization"]
    tensors = {}
    for file in folder.glob("model*.safetensors"):
        tensors |= mx.load(str(file))
    for name in tensors:
        if not name.endswith(".scales"):
            continue
        module = name.removesuffix(".scales")
        how = config.get(module, config)
        scales, biases = tensors[name], tensors.get(f"{module}.biases")
        if how["mode"] == "affine":
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        found = mx.dequantize(tensors[f"{module}.weight"], scales, biases, group_size=how["group_size"],
                              bits=how["bits"], mode=how["mode"])
        np.array(found.astype(mx.float32)).astype("<f4").tofile(out / f"{module}.f32")


def release(folder, out):
    import numpy as np
    from safetensors import safe_open
    e2m1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    with safe_open(folder / "model.safetensors", "np") as file:
        for name in file.keys():
            if not name.endswith("_blocks"):
                continue
            blocks, scales = file.get_tensor(name), file.get_tensor(name.replace("_blocks", "_scales"))
            pairs = np.stack([e2m1[blocks & 15], e2m1[blocks >> 4]], axis=-1)  # [experts, rows, blocks, 16, 2]
            found = np.ldexp(pairs, scales.astype(np.int32)[..., None, None] - 127)
            found = found.reshape(*blocks.shape[:2], -1)
            module = name.removesuffix("_blocks")
            if module.endswith("gate_up_proj"):
                for part, rows in [("gate_proj", found[:, 0::2]), ("up_proj", found[:, 1::2])]:
                    rows.astype("<f4").tofile(out / (module.replace("gate_up_proj", part) + ".f32"))
            else:
                found.astype("<f4").tofile(out / f"{module}.f32")


def quantize(folder, out, bits):
    import mlx.core as mx
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model
    mx.set_default_device(mx.cpu)
    model, config = load_model(folder)
    model, config = quantize_model(model, config, 64, int(bits.name))
    out.mkdir()
    save_model(out, model)
    save_config(config, config_path=out / "config.json")


def tokens(folder, texts, out):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # names of special tokens in a text are text
    texts = json.loads(texts.read_text(encoding="utf-8"))
    out.write_text(json.dumps([tokenizer.encode(text, add_special_tokens=False).ids for text in texts]))


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    globals()[what](*map(pathlib.Path, paths))
