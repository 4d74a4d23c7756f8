"""Gossamer's MLX worker: token ids in, token ids out.

One process holds one model of mlx-lm. Frames go over stdin and stdout: two little-endian u32 (bytes of a JSON
header, bytes of a blob), the header, the blob; src/mlx/frame.rs lists the messages. Tokenizer, Harmony and
grammars are the other side's; here are the model, continuous batching and the sampler's rules.

MLX runs on the main thread alone: its streams belong to threads. A second thread reads frames, answers pings and
notes cancellations and masks. Whatever else prints to stdout reaches stderr. The end of stdin ends the process.
"""
import os
import sys

# Before anything is imported that might print.
OUT = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import collections
import copy
import json
import math
import pathlib
import platform
import struct
import threading
import time
import traceback

PROTOCOL = 1
# More than any request or answer has.
MOST_HEADER, MOST_BLOB = 64 << 20, 1 << 30
# Tokens of a prompt that run at once: alone, beside others that decode, and where each row is scored.
PIECE, SHARED_PIECE, SCORED_PIECE = 512, 256, 32
# Prefixes shorter than this are not worth keeping.
LEAST_PREFIX = 32
# Below this temperature the distribution is a point in f32: greedy.
GREEDY_BELOW = 1e-5
# What a step waits for masks that are late, at least; a tenth of the forward pass if that is more.
MASK_GRACE = 0.02


class Pipe:
    """Frames, in and out."""

    def __init__(self):
        self.lock = threading.Lock()

    def send(self, op, blob=b"", **fields):
        header = json.dumps({"op": op, **fields}, separators=(",", ":")).encode()
        with self.lock:
            OUT.write(struct.pack("<II", len(header), len(blob)) + header)
            OUT.write(blob)
            OUT.flush()

    @staticmethod
    def receive():
        """The next header and blob; None at the end."""
        sizes = sys.stdin.buffer.read(8)
        if len(sizes) < 8:
            return None
        head, tail = struct.unpack("<II", sizes)
        if head > MOST_HEADER or tail > MOST_BLOB:
            raise ValueError(f"a frame of {head} + {tail} bytes")
        header, blob = sys.stdin.buffer.read(head), sys.stdin.buffer.read(tail)
        if len(header) < head or len(blob) < tail:
            return None
        return json.loads(header), blob


class Inbox:
    """What the other side said and the main thread has not looked at yet."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.changed = threading.Condition()
        self.messages, self.masks, self.cancelled = collections.deque(), {}, set()
        threading.Thread(target=self.read, name="reader", daemon=True).start()

    def read(self):
        try:
            while (frame := Pipe.receive()) is not None:
                header, blob = frame
                if header["op"] == "ping":
                    self.pipe.send("pong")
                    continue
                with self.changed:
                    if header["op"] == "mask":
                        self.masks[header["id"]] = (header["kind"], blob)
                    elif header["op"] == "cancel":
                        self.cancelled.add(header["id"])
                    else:
                        self.messages.append((header, blob))
                    self.changed.notify()
        except Exception:
            traceback.print_exc()
        # Nobody is left to work for. Not sys.exit: the main thread may be deep in a forward pass.
        os._exit(0)

    def next(self, wait):
        """The next message; None if there is none or, with `wait`, once a mask or a cancellation came."""
        with self.changed:
            if wait:
                self.changed.wait_for(lambda: self.messages or self.masks or self.cancelled)
            return self.messages.popleft() if self.messages else None


def released_wavelengths(config):
    """1 / inverse frequency as the released model means it: YaRN's correction range is not rounded."""
    dim, theta, scaling = config["head_dim"], config["rope_theta"], config["rope_scaling"]
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]

    def correction(rotations):
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(scaling.get("beta_fast", 32.0)), correction(scaling.get("beta_slow", 1.0))
    kept = theta ** -(np.arange(0, dim, 2) / dim)
    slow = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    return 1 / (kept / factor * slow + kept * (1 - slow))


def break_on_purpose(model, defect):
    """Seeded mistakes, for the tests of what compares engines."""
    if defect == "window":
        model.args.sliding_window -= 1
        model.model.window_size -= 1
    elif defect == "sinks":
        for layer in model.layers:
            layer.self_attn.sinks = mx.full(layer.self_attn.sinks.shape, -1e4, layer.self_attn.sinks.dtype)
    elif defect == "top3":
        for layer in model.layers:
            layer.mlp.num_experts_per_tok = 3
    elif defect not in (None, "rope"):
        raise ValueError(f"GOSSAMER_MLX_DEFECT: window, sinks, rope or top3, not {defect!r}")


def load(path, dtype, rope):
    """The model in memory: on a GPU in its own types, on the CPU in f32, where bf16 would be slow and inexact."""
    path = pathlib.Path(path)
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path}: no config.json in it; expected an MLX model's folder")
    model, config = load_model(path, lazy=True)
    if config.get("model_type") != "gpt_oss":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, expected 'gpt_oss'")
    if dtype is None and mx.default_device().type == mx.DeviceType.cpu:
        dtype = "float32"
    if dtype is not None:
        model.set_dtype({"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}[dtype])
    defect = os.environ.get("GOSSAMER_MLX_DEFECT") or None
    break_on_purpose(model, defect)
    scaling = config.get("rope_scaling") or {}
    yarn = "yarn" in (scaling.get("rope_type"), scaling.get("type"))
    # mlx-lm rounds, whatever the file says.
    if yarn and not (rope == "upstream" or scaling.get("truncate") or defect == "rope"):
        wavelengths = mx.array(released_wavelengths(config).astype(np.float32))
        for layer in model.layers:
            layer.self_attn.rope._freqs = wavelengths
    mx.eval(model.parameters())
    # Kernels are compiled when they are first used, and memory is wired: not on somebody's first request.
    cache = model.make_cache()
    for tokens in ([[0] * 8], [[0]]):
        mx.eval(model(mx.array(tokens), cache=cache))
    return model


def mix(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    z = (z ^ z >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return z ^ z >> 31


def uniform(seed, step):
    """A number in [0, 1) that depends on seed and step alone, the same that Gossamer's own sampler draws."""
    golden = 0x9E3779B97F4A7C15
    z = mix((mix((seed + golden) & 0xFFFFFFFFFFFFFFFF) + step * golden) & 0xFFFFFFFFFFFFFFFF)
    return (z >> 11) / (1 << 53)


class Row:
    """One request."""

    def __init__(self, header, ids):
        self.id, self.tokens, self.prompt = header["id"], ids, len(ids)
        self.most, self.stop = header["max_tokens"], frozenset(header["stop"])
        self.sampling, self.masked = header["sampling"], header["masked"]
        self.logprobs, self.prompt_logprobs = header.get("logprobs"), header.get("prompt_logprobs")
        self.reads_cache = header["cache"] and self.prompt_logprobs is None
        self.caches = None  # Its own, while it is in no batch.
        self.fed = 0  # Tokens in the cache.
        self.generated = self.draws = 0
        self.next = None  # The token that is fed next: an array of one.
        self.picked = None  # Where that was chosen, until it is reported.
        self.logits = None  # Of the last row, while it waits for its mask.
        self.started = None
        s = self.sampling
        self.greedy = s["temperature"] < GREEDY_BELOW or s["top_k"] == 1
        self.adjusts = bool(s["repetition_penalty"] != 1 or s["presence_penalty"] or s["frequency_penalty"]
                            or s["logit_bias"])
        self.counts = collections.Counter()
        # Its next choice needs the token before: no forward pass can be queued ahead of that.
        self.waits = self.masked or self.adjusts

    def adjusted(self, logits):
        """Penalties, then bias, on raw logits [1, vocabulary]."""
        s = self.sampling
        if s["repetition_penalty"] != 1:
            seen = mx.array(sorted(set(self.tokens)))
            x = logits[:, seen]
            penalty = s["repetition_penalty"]
            logits[:, seen] = mx.where(x > 0, x / penalty, x * penalty)
        if self.counts and (s["presence_penalty"] or s["frequency_penalty"]):
            ids = mx.array(list(self.counts))
            counts = mx.array(list(self.counts.values()), mx.float32)
            logits[:, ids] = logits[:, ids] - (s["presence_penalty"] + s["frequency_penalty"] * counts)
        for token, bias in s["logit_bias"]:
            logits[:, token] = logits[:, token] + bias
        return logits


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
        if len(tokens) < LEAST_PREFIX:
            return
        caches = [trimmed(c) for c in caches]
        size = sum(c.nbytes for c in caches)
        if size > self.most_bytes:
            return
        tokens = np.array(tokens)
        self.entries = [e for e in self.entries if not np.array_equal(e[0], tokens)]
        self.entries.append((tokens, caches, size))
        while sum(e[2] for e in self.entries) > self.most_bytes:
            self.entries.pop(0)


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


class Engine:
    """Continuous batching: each turn one step of all that decode and one piece of one prompt."""

    def __init__(self, pipe, inbox, model, cache_bytes, padding):
        self.pipe, self.inbox, self.model = pipe, inbox, model
        self.size = model.args.vocab_size
        zeros = np.zeros(self.size, np.float32)
        zeros[[i for i in padding if i < self.size]] = -math.inf
        # Log of 0 at ids that are never sampled, else 0: [vocabulary].
        self.padding = mx.array(zeros)
        self.prefixes = Prefixes(cache_bytes)
        self.turns = 0
        self.reset()

    def reset(self):
        self.prompts, self.parked = [], []
        # Of `rows`: one row's own caches, or those of a batch of several.
        self.rows, self.caches = [], []

    def live(self):
        return [*self.prompts, *self.parked, *self.rows]

    def is_waiting(self):
        """Whether nothing can be done before a mask or a message comes."""
        return not self.prompts and not self.rows

    def turn(self):
        self.drop_cancelled()
        self.unpark()
        if self.rows:
            self.step()
        if self.prompts:
            self.turns += 1
            # The one that is soonest done, so that short prompts don't wait for long ones; now and then the oldest.
            least = min(self.prompts, key=lambda row: row.prompt - row.fed)
            self.prefill(self.prompts[0] if self.turns % 4 == 0 else least)

    def drop_cancelled(self):
        with self.inbox.changed:
            cancelled, self.inbox.cancelled = self.inbox.cancelled, set()
            # Masks of requests that are over would keep the loop awake.
            known = {row.id for row in self.live()} | {header.get("id") for header, _ in self.inbox.messages}
            for gone in self.inbox.masks.keys() - known:
                del self.inbox.masks[gone]
        for row in self.live():
            if row.id in cancelled:
                self.leave(row, "cancelled")

    def prefill(self, row):
        if row.started is None:
            row.started = time.perf_counter()
            shared = 0
            if row.reads_cache:
                # The last token runs: its logits choose the first of the answer.
                row.fed, row.caches, shared = self.prefixes.find(row.tokens[:-1])
            if row.caches is None:
                row.caches = self.model.make_cache()
            self.pipe.send("progress", id=row.id, done=row.fed, cached=row.fed, shared=shared)
        end = row.prompt - 1
        most = SCORED_PIECE if row.prompt_logprobs is not None else SHARED_PIECE if self.rows else PIECE
        piece = row.tokens[row.fed : min(row.fed + most, end)]
        if piece:
            logits = self.model(mx.array([piece]), cache=row.caches)
            if row.prompt_logprobs is not None:
                following = row.tokens[row.fed + 1 : row.fed + 1 + len(piece)]
                self.tell_prompt(row, logits[0].astype(mx.float32), following)
            mx.eval([c.state for c in row.caches])
            row.fed += len(piece)
        if row.fed < end:
            self.pipe.send("progress", id=row.id, done=row.fed)
            return
        self.pipe.send("progress", id=row.id, done=row.prompt)
        self.prompts.remove(row)
        self.prefixes.keep(row.tokens[: row.fed], row.caches)
        if row.most == 0:
            self.leave(row, "length")
            return
        row.next = mx.array(row.tokens[-1:])
        self.join(row)

    def tell_prompt(self, row, logits, following):
        chosen, top_ids, top = log_probabilities(logits, self.padding, mx.array(following), row.prompt_logprobs)
        if top_ids is None:
            tops = [[] for _ in following]
        else:
            tops = [best_first(*pair) for pair in zip(top_ids.tolist(), top.tolist())]
        self.pipe.send("prompt_logprobs", id=row.id, logprobs=chosen.tolist(), top=tops)

    def join(self, row):
        if not self.rows:
            self.caches = row.caches
        elif len(self.rows) == 1:
            self.caches = [a.merge([a, b]) for a, b in zip(self.caches, row.caches)]
        else:
            for batch, own in zip(self.caches, row.caches):
                batch.extend(own.merge([own]))
        self.rows.append(row)
        row.caches = None

    def take_out(self, rows, keep_caches):
        """Takes rows out of the batch; with `keep_caches` each gets its own back."""
        for row in rows:
            if keep_caches:
                at = self.rows.index(row)
                row.caches = self.caches if len(self.rows) == 1 else [c.extract(at) for c in self.caches]
        staying = [i for i, row in enumerate(self.rows) if row not in rows]
        if not staying:
            self.caches = []
        elif len(staying) == 1 and len(self.rows) > 1:
            # One alone decodes without a mask, in its own cache.
            self.caches = [c.extract(staying[0]) for c in self.caches]
        elif len(staying) < len(self.rows):
            for c in self.caches:
                c.filter(mx.array(staying))
        self.rows = [self.rows[i] for i in staying]

    def leave(self, row, reason):
        """A request is over."""
        for queue in (self.prompts, self.parked):
            if row in queue:
                queue.remove(row)
        if row in self.rows:
            # An agent's next turn often goes on from here.
            keep = reason == "stop"
            self.take_out([row], keep)
            if keep:
                self.prefixes.keep(row.tokens[: row.fed], row.caches)
        row.caches = row.picked = row.logits = None
        self.inbox.masks.pop(row.id, None)
        self.pipe.send("done", id=row.id, reason=reason)

    def step(self):
        waits = any(row.waits for row in self.rows)
        if waits:
            self.report()
        rows = list(self.rows)
        if not rows:
            return
        began = time.perf_counter()
        tokens = mx.concatenate([row.next for row in rows])
        logits = self.model(tokens[:, None], cache=self.caches)[:, -1].astype(mx.float32)
        for row in rows:
            row.fed += 1
        if waits:
            mx.eval(logits)
            rows, logits = self.masked_in_time(rows, logits, time.perf_counter() - began)
            if not rows:
                return
        picked = self.pick(rows, logits)
        mx.async_eval(picked.arrays())
        if not waits:
            # The tokens before, while the next ones are computed.
            self.report()
        for i, row in enumerate(rows):
            row.picked, row.next = (picked, i), picked.ids[i : i + 1]

    def masked_in_time(self, rows, logits, took):
        """The rows that can choose now. Who still waits for a mask steps aside, with its logits: the others don't
        wait for it."""
        wanted = {row.id for row in rows if row.masked}
        with self.inbox.changed:
            there = lambda: wanted <= self.inbox.masks.keys() | self.inbox.cancelled
            self.inbox.changed.wait_for(there, max(MASK_GRACE, took / 10))
            late = wanted - self.inbox.masks.keys()
        if not late:
            return rows, logits
        for i, row in enumerate(rows):
            if row.id in late:
                row.logits = logits[i : i + 1]
                self.parked.append(row)
        on_time = [i for i, row in enumerate(rows) if row.id not in late]
        self.take_out([row for row in rows if row.id in late], True)
        return [rows[i] for i in on_time], logits[mx.array(on_time)] if on_time else None

    def unpark(self):
        with self.inbox.changed:
            ready = [row for row in self.parked if row.id in self.inbox.masks]
        for row in ready:
            self.parked.remove(row)
            picked = self.pick([row], row.logits)
            row.logits, row.picked, row.next = None, (picked, 0), picked.ids
            self.join(row)

    def pick(self, rows, raw):
        """Chooses a token a row from raw logits [rows, vocabulary]."""
        x = raw
        if any(row.adjusts for row in rows):
            each = [raw[i : i + 1] for i in range(len(rows))]
            x = mx.concatenate([row.adjusted(mx.array(a)) if row.adjusts else a for row, a in zip(rows, each)])
        x = x + self.padding
        if any(row.masked for row in rows):
            with self.inbox.changed:
                masks = [self.inbox.masks.pop(row.id) if row.masked else ("any", b"") for row in rows]
            allowed = [allowed_by(mask, self.size) for mask in masks]
            nothing = mx.zeros((1, self.size))
            x = x + mx.concatenate([nothing if a is None else a for a in allowed])
        ids = mx.argmax(x, axis=-1).astype(mx.int32)
        drawn = [i for i, row in enumerate(rows) if not row.greedy]
        if drawn:
            which = mx.array(drawn)
            some = x if len(drawn) == len(rows) else x[which]
            chosen = draw([rows[i] for i in drawn], some).astype(mx.int32)
            if len(drawn) == len(rows):
                ids = chosen
            else:
                ids[which] = chosen
        for row in rows:
            row.draws += 1
        return Picked(rows, raw, self.padding, ids, mx.max(x, axis=-1))

    def report(self):
        """Tells the tokens that were chosen, and ends what is over."""
        told, over = [], []
        for row in self.rows:
            if row.picked is None:
                continue
            picked, i = row.picked
            row.picked = None
            token, best, finite, logprob, top = picked.read(i)
            if not finite:
                over.append((row, None, "a logit is not finite: the model's weights are broken, or MLX is"))
                continue
            if best == -math.inf:
                over.append((row, None, "the mask allows no token at all"))
                continue
            row.tokens.append(token)
            row.generated += 1
            row.counts[token] += 1
            one = {"id": row.id, "token": token}
            if row.logprobs is not None:
                one |= {"logprob": logprob, "top": top[: row.logprobs]}
            told.append(one)
            if token in row.stop:
                over.append((row, "stop", None))
            elif row.generated >= row.most:
                over.append((row, "length", None))
        if told:
            self.pipe.send("tokens", tokens=told)
        for row, reason, error in over:
            if error is None:
                self.leave(row, reason)
            else:
                self.take_out([row], False)
                self.pipe.send("error", id=row.id, message=error)

    def fail(self, error):
        """A step failed: what it computed for is over, and the next ones begin afresh."""
        traceback.print_exc()
        for row in self.live():
            self.pipe.send("error", id=row.id, message=f"{type(error).__name__}: {error}")
        self.reset()
        self.inbox.masks.clear()
        mx.clear_cache()

    def score(self, first, ids):
        """Raw logits after each position from `first` on."""
        caches = self.model.make_cache()
        for start in range(0, len(ids), 64):
            piece = ids[start : start + 64]
            logits = self.model(mx.array([piece]), cache=caches)[0]
            skip = max(first - start, 0)
            if skip < len(piece):
                self.rows_out("scores", start + skip, logits[skip:])
            else:
                mx.eval([c.state for c in caches])
        self.pipe.send("scored")

    def trace(self, ids):
        """The residual stream as each norm sees it: what a block's two halves leave, and the logits."""
        seen = []

        class Tap(nn.Module):
            def __init__(self, norm):
                super().__init__()
                self.norm = norm

            def __call__(self, x):
                seen.append(x[0])
                return self.norm(x)

        inner = self.model.model
        places = [(layer, name) for layer in inner.layers for name in ("input_layernorm", "post_attention_layernorm")]
        places.append((inner, "norm"))
        norms = [getattr(*place) for place in places]
        # Before the first block, after each half of each, in the order in which they are seen.
        stages = [(None, "embed")]
        for layer in range(len(inner.layers)):
            stages += [(layer, "out_proj_residual"), (layer, "expert_down_residual")]
        try:
            for (module, name), norm in zip(places, norms):
                setattr(module, name, Tap(norm))
            caches = self.model.make_cache()
            for start in range(0, len(ids), 64):
                seen.clear()
                logits = self.model(mx.array([ids[start : start + 64]]), cache=caches)[0]
                for (layer, stage), values in zip(stages, seen):
                    self.rows_out("piece", start, values, layer=layer, stage=stage)
                self.rows_out("piece", start, logits, layer=None, stage="norm_lm_head")
        finally:
            for (module, name), norm in zip(places, norms):
                setattr(module, name, norm)
        self.pipe.send("traced")

    def rows_out(self, op, first, values, **fields):
        values = np.array(values.astype(mx.float32))
        self.pipe.send(op, values.tobytes(), first=first, rows=values.shape[0], width=values.shape[1], **fields)


def resident_bytes():
    """This process's memory now, or the most it had where the system tells no more."""
    try:
        return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory():
    return {"active": mx.get_active_memory(), "peak": mx.get_peak_memory(), "pool": mx.get_cache_memory(),
            "resident": resident_bytes()}


def start(pipe, inbox, header):
    began = time.perf_counter()
    if mx.metal.is_available():
        # Weights that are paged out between requests would cost seconds.
        mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"])
    mx.set_cache_limit(2 << 30)
    model = load(header["path"], header.get("dtype"), header["rope"])
    engine = Engine(pipe, inbox, model, header["cache_bytes"], header["padding"])
    pipe.send("loaded", seconds=time.perf_counter() - began, vocab=engine.size, memory=memory())
    return engine


def take(pipe, inbox, engine, header, blob):
    """One message; the engine afterwards."""
    op = header["op"]
    if op == "load":
        return start(pipe, inbox, header)
    if op == "stats":
        pipe.send("stats", **memory())
    elif op == "shutdown":
        os._exit(0)
    elif op in ("generate", "score", "trace"):
        ids = np.frombuffer(blob, "<u4").tolist()
        if op == "generate":
            engine.prompts.append(Row(header, ids))
        elif op == "score":
            engine.score(header["first"], ids)
        else:
            engine.trace(ids)
    else:
        raise ValueError(f"unknown message {op!r}")
    return engine


def serve(pipe, inbox):
    engine = None
    while True:
        message = inbox.next(wait=engine is None or engine.is_waiting())
        if message is not None:
            try:
                engine = take(pipe, inbox, engine, *message)
            except Exception as error:
                traceback.print_exc()
                pipe.send("error", id=message[0].get("id"), message=f"{type(error).__name__}: {error}")
            continue
        if engine is None:
            continue
        try:
            engine.turn()
        except Exception as error:
            engine.fail(error)


def device():
    """What computes."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return f"cpu {platform.machine()}"
    return str(mx.device_info().get("device_name", "gpu"))


pipe = Pipe()
try:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx_lm
    import numpy as np
    from mlx_lm.utils import load_model
except Exception as error:
    traceback.print_exc()
    pipe.send("error", id=None, message=f"this Python can't load mlx-lm: {type(error).__name__}: {error}")
    sys.exit(1)
pipe.send("hello", protocol=PROTOCOL, python=platform.python_version(), mlx=mx.__version__,
          mlx_lm=mlx_lm.__version__, device=device(), gpu=mx.default_device().type != mx.DeviceType.cpu)
serve(pipe, Inbox(pipe))
