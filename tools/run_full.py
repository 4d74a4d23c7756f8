"""Runs a model of the released size and checks what it takes: run_full.py GOSSAMER MODEL.gguf

32 tokens of a prompt; peak memory at most the file's size (its map counts) and 1.5 GB.
"""

import json
import os
import resource
import subprocess
import sys
import time

gossamer, model = sys.argv[1:]
start = time.monotonic()
command = [gossamer, "run", "--model", model, "--max-tokens", "32", "--temperature", "0", "--json", "hello"]
answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
seconds = time.monotonic() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
limit = os.path.getsize(model) + 1_500_000_000
print(f"{seconds:.1f} s, peak memory {peak / 1e9:.2f} GB, limit {limit / 1e9:.2f} GB: {json.dumps(answer)[:400]}")
if answer["finish_reason"] != "length" or answer["usage"]["completion_tokens"] != 32:
    sys.exit("expected 32 tokens")
if peak > limit:
    sys.exit("too much memory")
