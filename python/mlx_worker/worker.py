"""Gossamer's MLX worker: token ids in, token ids out.

One process holds one model of mlx-lm. Frames go over stdin and stdout: two little-endian u32 (bytes of a JSON
header, bytes of a blob), the header, the blob; src/mlx/frame.rs lists the messages. Tokenizer, Harmony and
grammars are the other side's; here are the model, continuous batching and the sampler's rules.

MLX runs on the main thread alone: its streams belong to threads. A second thread reads frames, answers pings and
notes cancellations and masks. The end of stdin ends the process.
"""
from pipe import PROTOCOL, Inbox, Pipe  # First: it guards stdout.

import collections
import math
import os
import platform
import sys
import time
import traceback

pipe = Pipe()
try:
    import mlx.core as mx
    import mlx_lm
    import numpy as np

    import model as models
    from hardware import device, is_gpu
    from prefixes import Prefixes
    from sampling import GREEDY_BELOW, Picked, allowed_by, best_first, draw, log_probabilities
except Exception as error:
    traceback.print_exc()
    pipe.send("error", id=None, message=f"this Python can't load mlx-lm: {type(error).__name__}: {error}")
    sys.exit(1)

# Tokens of a prompt that run at once: alone, beside others that decode, and where each row is scored.
PIECE, SHARED_PIECE, SCORED_PIECE = 512, 256, 32
# On a processor, where more at once is no faster, and one piece of a large model takes long: who waits for it is
# told of progress.
CPU_PIECE = 64
# What a step waits for masks that are late, at least; a tenth of the forward pass if that is more.
MASK_GRACE = 0.02
NOT_FINITE = "a logit is not finite: the model's weights are broken, or MLX is"


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
        self.piece = PIECE if is_gpu() else CPU_PIECE
        # So many tokens of every longer prompt count as read: to see what they take, without the time.
        self.pretended = 0
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
            row = self.prompts[0] if self.turns % 4 == 0 else least
            try:
                is_read = self.prefill(row)
            except Exception as error:
                # Nobody else's cache was touched.
                traceback.print_exc()
                self.drop(row, error)
            else:
                if is_read:
                    self.join(row)

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
        """One piece of a prompt; whether that was the last one and an answer is to follow."""
        if row.started is None:
            row.started = time.perf_counter()
            shared = 0
            if row.reads_cache:
                # The last token runs: its logits choose the first of the answer.
                row.fed, row.caches, shared = self.prefixes.find(row.tokens[:-1])
            if self.pretended and row.fed < self.pretended < row.prompt:
                row.fed, row.caches = self.pretended, models.zeros(self.model, self.pretended)
            if row.caches is None:
                row.caches = self.model.make_cache()
            self.pipe.send("progress", id=row.id, done=row.fed, cached=row.fed, shared=shared)
        end = row.prompt - 1
        most = SCORED_PIECE if row.prompt_logprobs is not None else SHARED_PIECE if self.rows else PIECE
        piece = row.tokens[row.fed : min(row.fed + min(most, self.piece), end)]
        if piece:
            logits = self.model(mx.array([piece]), cache=row.caches)
            if row.prompt_logprobs is not None:
                following = row.tokens[row.fed + 1 : row.fed + 1 + len(piece)]
                self.tell_prompt(row, logits[0].astype(mx.float32), following)
            mx.eval([c.state for c in row.caches])
            row.fed += len(piece)
        if row.fed < end:
            self.pipe.send("progress", id=row.id, done=row.fed)
            return False
        self.pipe.send("progress", id=row.id, done=row.prompt)
        self.prompts.remove(row)
        self.keep(row)
        if row.most == 0:
            self.leave(row, "length")
            return False
        row.next = mx.array(row.tokens[-1:])
        return True

    def keep(self, row):
        """Keeps what it left in its caches, if there is room."""
        try:
            self.prefixes.keep(row.tokens[: row.fed], row.caches)
        except Exception:
            # It would have spared time; no request is lost for that.
            traceback.print_exc()
            self.prefixes.clear()

    def tell_prompt(self, row, logits, following):
        if not mx.all(mx.isfinite(logits)).item():
            raise FloatingPointError(NOT_FINITE)
        chosen, top_ids, top = log_probabilities(logits, self.padding, mx.array(following), row.prompt_logprobs)
        if top_ids is None:
            tops = [[] for _ in following]
        else:
            tops = [best_first(*pair) for pair in zip(top_ids.tolist(), top.tolist())]
        self.pipe.send("prompt_logprobs", id=row.id, logprobs=chosen.tolist(), top=tops)

    def join(self, row):
        if not self.rows:
            self.caches = row.caches
        else:
            # Layer by layer: only one is there twice at any time.
            for at, own in enumerate(row.caches):
                if len(self.rows) == 1:
                    self.caches[at] = own.merge([self.caches[at], own])
                else:
                    self.caches[at].extend(own.merge([own]))
                row.caches[at] = None
                mx.eval(self.caches[at].state)
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
            # Layer by layer here too.
            for c in self.caches:
                c.filter(mx.array(staying))
                mx.eval(c.state)
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
                self.keep(row)
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
                over.append((row, None, NOT_FINITE))
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

    def drop(self, row, error):
        """A request failed."""
        if row in self.prompts:
            self.prompts.remove(row)
        row.caches = row.picked = row.logits = None
        with self.inbox.changed:
            self.inbox.masks.pop(row.id, None)
        memory = is_memory(error)
        if memory:
            # The next one is to find more room.
            self.prefixes.clear()
        self.pipe.send("error", id=row.id, message=f"{type(error).__name__}: {error}", memory=memory)
        mx.clear_cache()

    def fail(self, error):
        """A step failed: what it computed for is over, and the next ones begin afresh."""
        traceback.print_exc()
        failed = self.live()
        self.reset()
        for row in failed:
            self.drop(row, error)


def is_memory(error):
    """Whether it was for want of memory: MLX tells that in words."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(w in text for w in ("allocate", "out of memory", "insufficient memory"))


def start(pipe, inbox, header):
    began = time.perf_counter()
    if mx.metal.is_available():
        # Weights that are paged out between requests would cost seconds.
        mx.set_wired_limit(mx.device_info()["max_recommended_working_set_size"])
    # What is planned for: MLX waits for what runs before it takes more, and keeps no more of what is free.
    mx.set_cache_limit(header["pool_bytes"])
    if header["memory"]:
        mx.set_memory_limit(header["memory"])
    model = models.load(header["path"], header.get("dtype"), header["rope"])
    engine = Engine(pipe, inbox, model, header["cache_bytes"], header["padding"])
    pipe.send("loaded", seconds=time.perf_counter() - began, vocab=engine.size, memory=models.memory())
    return engine


def take(pipe, inbox, engine, header, blob):
    """One message; the engine afterwards."""
    op = header["op"]
    if op == "load":
        return start(pipe, inbox, header)
    if op == "stats":
        pipe.send("stats", **models.memory())
    elif op == "pretend":
        engine.pretended = header["tokens"]
    elif op == "shutdown":
        os._exit(0)
    elif op in ("generate", "score", "trace"):
        ids = np.frombuffer(blob, "<u4").tolist()
        if op == "generate":
            engine.prompts.append(Row(header, ids))
        elif op == "score":
            models.score(pipe, engine.model, header["first"], ids)
        else:
            models.trace(pipe, engine.model, ids)
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


pipe.send("hello", protocol=PROTOCOL, python=platform.python_version(), mlx=mx.__version__,
          mlx_lm=mlx_lm.__version__, device=device(), gpu=is_gpu(), resident=models.resident_bytes()[0])
serve(pipe, Inbox(pipe))
