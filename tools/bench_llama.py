"""Times llama.cpp on a GGUF file, for comparison with `gossamer bench`: prefill and decode of random
tokens, the model loaded once, one warm-up round that is not counted.

    python3 tools/bench_llama.py MODEL.gguf [--repack 0|1] [--flash 0|1] [-p 512] [-n 64] [-r 3] [-t THREADS]

Needs llama-cpp-python 0.3.36, which pip builds from source; gcc 12 miscompiles its AMX code, so use
clang or gcc 13 (CC=clang CXX=clang++). Run it and `gossamer bench` in turns, one process at a time.
"""

import argparse
import os
import random
import resource
import statistics
import time

import llama_cpp as llama


def main():
    args = argparse.ArgumentParser()
    args.add_argument("model")
    args.add_argument("--repack", type=int, default=1)
    args.add_argument("--flash", type=int, default=1)
    args.add_argument("-p", type=int, default=512)
    args.add_argument("-n", type=int, default=64)
    args.add_argument("-r", type=int, default=3)
    args.add_argument("-t", type=int, default=os.cpu_count())
    args = args.parse_args()

    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = bool(args.repack)
    begin = time.perf_counter()
    model = llama.llama_model_load_from_file(args.model.encode(), params)
    load = time.perf_counter() - begin
    params = llama.llama_context_default_params()
    params.n_ctx = args.p + args.n + 64
    params.n_batch = max(args.p, 512)
    params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = args.t
    params.flash_attn_type = args.flash
    context = llama.llama_init_from_model(model, params)
    memory = llama.llama_get_memory(context)
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rng = random.Random()

    def decode(count):
        tokens = [rng.randrange(vocabulary * 9 // 10) for _ in range(count)]
        tokens = (llama.llama_token * count)(*tokens)  # the batch only points to it
        batch = llama.llama_batch_get_one(tokens, count)
        if llama.llama_decode(context, batch) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(context)

    prefill, generate = [], []
    for round in range(args.r + 1):
        llama.llama_memory_clear(memory, True)
        begin = time.perf_counter()
        decode(args.p)
        middle = time.perf_counter()
        for _ in range(args.n):
            decode(1)
        end = time.perf_counter()
        if round > 0:
            prefill.append(args.p / (middle - begin))
            generate.append(args.n / (end - middle))

    def spread(values):
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0:.2f}"

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"llama.cpp, {args.t} threads, repack {args.repack}, flash attention {args.flash}: "
        f"pp{args.p} {spread(prefill)} tok/s, tg{args.n} {spread(generate)} tok/s, "
        f"loaded in {load:.1f} s, peak {peak:.1f} GB"
    )


if __name__ == "__main__":
    main()
