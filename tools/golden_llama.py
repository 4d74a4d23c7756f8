#!/usr/bin/env python3
"""Golden file: llama.cpp's teacher-forced logits of a GGUF model, with what made them.

    golden_llama.py MODEL.gguf IDS.json OUT.npy

Needs llama-cpp-python (built from source, so no test builds it: the file is kept in the tree).
Writes OUT.npy, f16 [tokens, vocabulary] (its rounding adds 2e-4, llama.cpp's own error is 50 times
that), and OUT.json: judge, version, command, hashes of model and ids. llama.cpp rounds YaRN's
correction range, so compare with the rounded variant.
"""
import argparse
import hashlib
import json
import pathlib
import platform

import llama_cpp
import numpy as np


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main():
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("model", type=pathlib.Path)
    cli.add_argument("ids", type=pathlib.Path)
    cli.add_argument("out", type=pathlib.Path)
    args = cli.parse_args()
    ids = json.loads(args.ids.read_text())
    llama = llama_cpp.Llama(str(args.model), n_ctx=512, logits_all=True, n_threads=1, verbose=False)
    llama.eval(ids)
    np.save(args.out, np.array(llama.scores[: len(ids)]).astype(np.float16))
    args.out.with_suffix(".json").write_text(json.dumps({
        "judge": "llama.cpp through llama-cpp-python",
        "version": llama_cpp.__version__,
        "system": llama_cpp.llama_print_system_info().decode().strip(),
        "machine": platform.machine(),
        "command": f"tools/golden_llama.py {args.model.name} {args.ids.name} {args.out.name}",
        "inputs": "tools/make_tiny_models.py OUT_DIR --seed 1",
        "model_sha256": sha256(args.model),
        "ids_sha256": sha256(args.ids),
    }, indent=1) + "\n")


if __name__ == "__main__":
    main()
