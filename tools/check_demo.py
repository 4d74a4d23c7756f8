"""The demo model's held-out items: writes them, and checks that training never saw them.

    check_demo.py write                   models/demo/heldout.jsonl.gz, from the fixed seed
    check_demo.py overlap FIRST COUNT     makes the training shards FIRST .. FIRST+COUNT again (all 883: `overlap 0 883`) and
                                          fails if the conversation of an item is among them, whatever stands around it (date,
                                          effort, instructions), or if models/demo/heldout.jsonl.gz is not what `write` makes
Needs tiktoken, to bound the long items by their tokens.
"""

import concurrent.futures
import gzip
import hashlib
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
DEMO = os.path.join(HERE, "..", "models", "demo")
sys.path.insert(0, DEMO)

import corpus  # noqa: E402
import harmony  # noqa: E402
import vocab  # noqa: E402

PATH = os.path.join(DEMO, "heldout.jsonl.gz")


def counter():
    encoding = vocab.encoding()
    return lambda text: len(encoding.encode_ordinary(text))


def item(c):
    """One line: the conversation as `gossamer batch` reads it, the digest of its prompt, and what must come."""
    def message(m):
        return {**m, "content_type": "<|constrain|>json"} if m["role"] == "assistant" and m.get("recipient") else m
    conversation = {"effort": c["reasoning"], "date": c["date"], "instructions": c["instructions"], "tools": c["tools"],
                    "channels": ["analysis", "commentary", "final"] if c["commentary"] else None,
                    "response_formats": [c["response_format"]] if c["response_format"] else [],
                    "messages": [message(m) for m in c["messages"]]}
    last = c["target"][-1]
    expected = {"text": last["content"]}
    if last.get("recipient"):
        expected = {"call": last["recipient"], "arguments": json.loads(last["content"])}
    elif c["response_format"]:
        expected = {"json": json.loads(last["content"])}
    digest = hashlib.sha256(harmony.prompt(c).encode()).hexdigest()
    return {"kind": c["kind"], "prompt_sha256": digest, "expected": expected, "conversation": conversation}


def lines():
    # An assistant that says its name is always asked in the same words: those items differ in the conversation before.
    return [json.dumps(item(c), ensure_ascii=False, separators=(",", ":")) for c in corpus.held_out(counter())]


def said(c):
    """What a conversation says, without the frame: its messages, its table, its schema."""
    table = c["instructions"] if (c["instructions"] or "").startswith("Answer from this table") else ""
    schema = harmony.compact(c["response_format"]["schema"]) if c["response_format"] else ""
    text = "\0".join([table, schema] + [m["content"].lower() for m in c["messages"]])
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


def shard(index):
    return [said(c) for c in corpus.shard(index, counter())]


def main():
    if sys.argv[1:] == ["write"]:
        with open(PATH, "wb") as f, gzip.GzipFile(fileobj=f, mode="wb", mtime=0, filename="") as z:
            z.write("".join(line + "\n" for line in lines()).encode())
        return
    if len(sys.argv) != 4 or sys.argv[1] != "overlap":
        sys.exit(__doc__)
    first, count = map(int, sys.argv[2:])
    with gzip.open(PATH, "rt", encoding="utf-8") as f:
        stored = f.read().splitlines()
    if stored != lines():
        sys.exit(f"{PATH} is not what `check_demo.py write` makes")
    held = {said(c): c["kind"] for c in corpus.held_out(counter())}
    if len(held) < 0.99 * len(stored):
        sys.exit(f"only {len(held)} of {len(stored)} items differ in what they say")
    seen, documents = [], 0
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for digests in pool.map(shard, range(first, first + count)):
            documents += len(digests)
            seen += [held[d] for d in digests if d in held]
    print(f"{len(stored)} items, {documents} training documents, {len(seen)} of them an item")
    if seen:
        sys.exit(f"held-out items in the training text: {seen}")


if __name__ == "__main__":
    main()
