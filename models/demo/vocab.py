"""The demo model's vocabulary: byte-level BPE over a sample of the training text.

    python3 vocab.py            writes vocab.txt (one base64 token a line, rank order)

Ids: 0..255 the bytes, then the merges in rank order (so that merging the pair of lowest id is the exact BPE), then
the Harmony specials at the release's distances, then padding up to SIZE. No token holds two digits.
"""

import base64
import collections
import os
import random

import harmony

SIZE = 2048
ORDINARY = 2000
HERE = os.path.dirname(os.path.abspath(__file__))
PATH = os.path.join(HERE, "vocab.txt")
SPECIALS = {name: ORDINARY + i for name, i in (
    ("<|startoftext|>", 0), ("<|endoftext|>", 1), ("<|return|>", 4), ("<|constrain|>", 5), ("<|channel|>", 7), ("<|start|>", 8),
    ("<|end|>", 9), ("<|message|>", 10), ("<|call|>", 14), ("<|endofprompt|>", 20))}
RESERVED = {f"<|reserved_{ORDINARY + i}|>": ORDINARY + i for i in range(21) if ORDINARY + i not in SPECIALS.values()}
PADDING = range(ORDINARY + 21, SIZE)

# The pre-split of o200k.
PATTERN = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def tokens():
    """The ordinary tokens' bytes, in id order."""
    with open(PATH, encoding="ascii") as f:
        return [base64.b64decode(line) for line in f]


def encoding():
    """A tiktoken encoding of the vocabulary."""
    import tiktoken
    ranks = {t: i for i, t in enumerate(tokens())}
    return tiktoken.Encoding("gossamer-demo", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={**SPECIALS, **RESERVED})


def learn(counts, size):
    """BPE: merges the most frequent pair (ties to the lower bytes) until there are `size` tokens."""
    vocabulary = [bytes([b]) for b in range(256)]
    words = [([bytes([b]) for b in w], n) for w, n in counts.items()]
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, (w, n) in enumerate(words):
        for p in zip(w, w[1:]):
            pairs[p] += n
            where[p].add(i)
    known = set(vocabulary)
    while len(vocabulary) < size:
        best = max(pairs, key=lambda p: (pairs[p], p))
        merged = best[0] + best[1]
        if merged not in known:
            known.add(merged)
            vocabulary.append(merged)
        for i in where.pop(best):
            w, n = words[i]
            for p in zip(w, w[1:]):
                pairs[p] -= n
            j = 0
            while j + 1 < len(w):
                if (w[j], w[j + 1]) == best:
                    w[j:j + 2] = [merged]
                j += 1
            for p in zip(w, w[1:]):
                pairs[p] += n
                where[p].add(i)
        pairs.pop(best, None)
    return vocabulary


def main():
    import corpus
    import regex
    counts = collections.Counter()
    rng = random.Random(corpus.SEED)
    splitter = regex.compile(PATTERN)
    special = regex.compile("|".join(regex.escape(s) for s in SPECIALS))
    for i in range(30000):
        kind = rng.choice([k for k in corpus.MIX if k != "needle"]) if i % 50 else "needle"
        c = corpus.make(kind, rng, False, lambda t: len(t) // 4)
        for part in special.split(harmony.prompt(c) + harmony.target(c)):
            for word in splitter.findall(part):
                if not word.strip().isdigit():
                    counts[word.encode()] += 1
    # Dampened, so that rare names and words also get tokens of their own.
    counts = {w: int(1 + 100 * n ** 0.5) for w, n in counts.items() if n > 2}
    with open(PATH, "w", encoding="ascii") as f:
        for t in learn(counts, ORDINARY):
            f.write(base64.b64encode(t).decode() + "\n")


if __name__ == "__main__":
    main()
