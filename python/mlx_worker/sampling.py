"""Logits to tokens: the rules of Gossamer's own sampler, in the same order and with the same draws."""
import math

import mlx.core as mx
import numpy as np

# Below this temperature the distribution is a point in f32: greedy.
GREEDY_BELOW = 1e-5


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return z ^ z >> 31


def uniform(seed, step):
    """A number in [0, 1) that depends on seed and step alone, the same that Gossamer's own sampler draws."""
    golden = 0x9E3779B97F4A7C15
    z = mix((mix((seed + golden) & 0xFFFFFFFFFFFFFFFF) + step * golden) & 0xFFFFFFFFFFFFFFFF)
    return (z >> 11) / (1 << 53)


class Picked:
    """The tokens that one step chose, perhaps not computed yet."""

    def __init__(self, rows, raw, padding, ids, best):
        self.ids, self.best, self.finite = ids, best, mx.all(mx.isfinite(raw), axis=-1)
        self.logprob = self.top = self.top_ids = None
        wanted = [row.logprobs for row in rows if row.logprobs is not None]
        if wanted:
            self.logprob, self.top_ids, self.top = log_probabilities(raw, padding, ids, max(wanted))
        self.host = None

    def arrays(self):
        return [a for a in (self.ids, self.best, self.finite, self.logprob, self.top_ids, self.top) if a is not None]

    def read(self, i):
        """Row i's token, the best logit, whether all are finite, the token's log-probability, the likeliest."""
        if self.host is None:
            mx.eval(self.arrays())
            self.host = [self.ids.tolist(), self.best.tolist(), self.finite.tolist()]
            self.host += [a if a is None else a.tolist() for a in (self.logprob, self.top_ids, self.top)]
        ids, best, finite, logprob, top_ids, top = self.host
        pairs = best_first(top_ids[i], top[i]) if top_ids else []
        return ids[i], best[i], finite[i], logprob and logprob[i], pairs


def log_probabilities(raw, padding, ids, count):
    """The model's own, of `ids` [rows]; and the `count` likeliest tokens with theirs, in no order."""
    norm = mx.logsumexp(raw, axis=-1, keepdims=True)
    chosen = (mx.take_along_axis(raw, ids[:, None], axis=-1) - norm)[:, 0]
    if not count:
        return chosen, None, None
    allowed = raw + padding
    count = min(count, raw.shape[-1])
    top = mx.argpartition(-allowed, kth=count - 1, axis=-1)[:, :count]
    return chosen, top, mx.take_along_axis(allowed, top, axis=-1) - norm


def best_first(ids, logprobs):
    pairs = [pair for pair in zip(ids, logprobs) if pair[1] > -math.inf]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def column(values, dtype=None):
    return mx.array(values, dtype or mx.float32)[:, None]


def draw(rows, x):
    """One token a row by temperature, top-k, top-p and min-p, from logits [rows, vocabulary] with -inf at what may
    not come. The rules, their order and the number drawn are those of Gossamer's own sampler."""
    s = [row.sampling for row in rows]
    best = mx.max(x, axis=-1, keepdims=True)
    temperature = column([p["temperature"] for p in s])
    weights = mx.exp((x - best) / temperature)
    if any(p["top_k"] or p["top_p"] < 1 for p in s):
        size = x.shape[-1]
        order = mx.argsort(-x, axis=-1)
        sorted_weights = mx.take_along_axis(weights, order, axis=-1)
        rank = mx.arange(size)[None]
        kept = rank < column([p["top_k"] or size for p in s], mx.int32)
        sums = mx.cumsum(mx.where(kept, sorted_weights, 0), axis=-1)
        top_p = column([p["top_p"] for p in s])
        kept = kept & ((sums - sorted_weights < top_p * sums[:, -1:]) | (rank == 0) | (top_p >= 1))
        kept = mx.put_along_axis(mx.zeros_like(kept), order, kept, axis=-1)
        weights = mx.where(kept, weights, 0)
    if any(p["min_p"] for p in s):
        least = column([math.log(p["min_p"]) if p["min_p"] else -math.inf for p in s])
        weights = mx.where(x >= best + least * temperature, weights, 0)
    u = column([min(uniform(p["seed"], row.draws), 1 - 2.0**-24) for p, row in zip(s, rows)])
    return first_past(weights, u)


def first_past(weights, u):
    """Where the sum of weights [rows, n], taken in order, passes the share u [rows, 1] of all: by blocks, since one
    long sum in f32 would lose the small ones."""
    block = 1024
    n = weights.shape[-1]
    weights = mx.pad(weights, [(0, 0), (0, -n % block)]).reshape(len(weights), -1, block)
    sums = mx.sum(weights, axis=-1)
    ends = mx.cumsum(sums, axis=-1)
    target = u * ends[:, -1:]
    at = mx.argmax((ends > target) | (ends >= ends[:, -1:]), axis=-1)[:, None]
    rest = target - (mx.take_along_axis(ends, at, axis=-1) - mx.take_along_axis(sums, at, axis=-1))
    inside = mx.cumsum(mx.take_along_axis(weights, at[:, :, None], axis=1)[:, 0], axis=-1)
    place = mx.argmax((inside > rest) | (inside >= inside[:, -1:]), axis=-1)
    return at[:, 0] * block + place


def allowed_by(mask, size):
    """0 where the token may come, -inf elsewhere: [1, size]; None if all may."""
    kind, blob = mask
    if kind == "any":
        return None
    if kind == "bits":
        bits = np.unpackbits(np.frombuffer(blob, np.uint8), bitorder="little")[:size]
        allowed = np.zeros(size, bool)
        allowed[: len(bits)] = bits
    else:
        ids = np.frombuffer(blob, "<u4")
        allowed = np.full(size, kind == "except")
        allowed[ids[ids < size]] = kind == "only"
    return mx.where(mx.array(allowed), 0.0, -math.inf)[None]
