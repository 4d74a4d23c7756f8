"""The demo model's text: shards of training documents, and the held-out items.

Shard `i` is a function of (SEED, i) alone, so that any part of what was trained on can be made again.
"""

import gzip
import json
import random

import functions
import harmony
import tasks

SEED = 20261123
SHARD_DOCUMENTS = 2048
ROW = 4096

# kind -> share of the training documents
MIX = {"arithmetic": 26, "facts": 10, "table": 10, "repeat": 8, "json_schema": 11, "tool_call": 12, "tool_result": 7, "needle": 7, "multi_turn": 8, "chat": 8}
HELD_OUT = {"arithmetic": 160, "facts": 160, "table": 120, "repeat": 120, "json_schema": 120, "tool_call": 120, "tool_result": 120, "needle": 120, "multi_turn": 120}


def make(kind, rng, held, count):
    if kind == "needle":
        return tasks.needle(rng, held, count)
    return getattr(functions if kind in ("tool_call", "tool_result") else tasks, kind)(rng, held)


def shard(index, count):
    """The conversations of one training shard."""
    rng = random.Random(f"{SEED} train {index}")
    kinds, weights = list(MIX), list(MIX.values())
    for _ in range(SHARD_DOCUMENTS):
        yield make(rng.choices(kinds, weights)[0], rng, False, count)


def held_out(count):
    """The held-out items: conversations with their kind."""
    items, seen = [], set()
    for kind, n in HELD_OUT.items():
        rng = random.Random(f"{SEED} held-out {kind}")
        made = 0
        while made < n:
            c = make(kind, rng, True, count)
            text = harmony.prompt(c)
            if text not in seen:
                seen.add(text)
                items.append({"kind": kind, **c})
                made += 1
    return items


def write_held_out(path, items):
    with open(path, "wb") as f, gzip.GzipFile(fileobj=f, mode="wb", mtime=0, filename="") as z:
        for item in items:
            z.write((json.dumps(item, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def read_held_out(path):
    with gzip.open(path, "rt", encoding="utf-8") as f:
        return [json.loads(line) for line in f]
