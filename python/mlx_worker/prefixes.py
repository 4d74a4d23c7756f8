"""What long beginnings left in the cache, to go on from."""
import copy

import mlx.core as mx
import numpy as np

# Prefixes shorter than this are not worth keeping.
LEAST = 32


class Prefixes:
    """What long beginnings left in the cache, the latest used last. A ring of a sliding window can't go back, so
    one serves only prompts that begin with all of it."""

    def __init__(self, most_bytes):
        self.entries, self.most_bytes = [], most_bytes  # (tokens as an array, caches, bytes)

    def find(self, tokens):
        """The longest whole prefix of `tokens`: its length and copies of its caches; and how many tokens any entry
        shares with them."""
        wanted, best, shared = np.array(tokens), None, 0
        for at, (known, _, _) in enumerate(self.entries):
            n = min(len(known), len(wanted))
            apart = np.flatnonzero(known[:n] != wanted[:n])
            same = int(apart[0]) if len(apart) else n
            shared = max(shared, same)
            if same == len(known) and (best is None or same > len(self.entries[best][0])):
                best = at
        if best is None:
            return 0, None, shared
        self.entries.append(self.entries.pop(best))
        known, caches, _ = self.entries[-1]
        return len(known), [copied(c) for c in caches], shared

    def keep(self, tokens, caches):
        if len(tokens) < LEAST:
            return
        caches = [trimmed(c) for c in caches]
        # What is not computed yet would hold all that it comes from: a whole batch.
        mx.eval([c.state for c in caches])
        size = sum(c.nbytes for c in caches)
        if size > self.most_bytes:
            return
        tokens = np.array(tokens)
        self.entries = [e for e in self.entries if not np.array_equal(e[0], tokens)]
        self.entries.append((tokens, caches, size))
        while sum(e[2] for e in self.entries) > self.most_bytes:
            self.entries.pop(0)

    def clear(self):
        self.entries.clear()


def copied(cache):
    """Its like, to be written to without a trace in the other. `a[...]` is a value of its own, and costs a copy of
    the bytes only when one of the two is written to; the array itself would be shared."""
    cache = copy.copy(cache)
    if cache.keys is not None:
        cache.keys, cache.values = cache.keys[...], cache.values[...]
    return cache


def trimmed(cache):
    """A copy without what has left a sliding window."""
    cache = copied(cache)
    most = getattr(cache, "max_size", None)
    if most is not None and cache.keys is not None and cache._idx == cache.keys.shape[2] > most:
        cache.keys, cache.values = (mx.contiguous(a[..., -most:, :]) for a in (cache.keys, cache.values))
        cache._idx = most
    return cache
