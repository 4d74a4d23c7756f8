"""Trains the demo model: gpt-oss in small (docs/model.md), on the dialogues of corpus.py.

    python3 train.py --out DIR [--steps N] [--seconds S] [--init DIR]

Needs torch, numpy and tiktoken. With a GPU: packed rows, flex attention, bf16 products. Without: the same model in
eager f32. The last part of a run is quantization-aware: the forward pass sees the experts as MXFP4 and the other
matrices as Q8_0, so that the export loses nothing. DIR receives the f32 weights (gate.npy, up.npy, down.npy,
rest.npz) at each evaluation and at the end.
"""

import argparse
import math
import multiprocessing
import os
import random
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import corpus
import harmony
import vocab
from shape import *  # noqa: F403 - the model's shape

# --- text to rows -------------------------------------------------------------------------------

PROMPT_WEIGHT = 0.03
_encoding = None


def encoder():
    global _encoding
    if _encoding is None:
        _encoding = vocab.encoding()
    return _encoding


def count(text):
    return len(encoder().encode_ordinary(text))


def document(c):
    """Token ids and the weight of each as a label."""
    p = encoder().encode(harmony.prompt(c), allowed_special="all")
    t = encoder().encode(harmony.target(c), allowed_special="all")
    return p + t, [PROMPT_WEIGHT] * len(p) + [1.0] * len(t)


def pack(documents):
    """First fit into rows of ROW tokens. Returns tokens, weights, document numbers (-1: none), positions."""
    rows = []
    for number, (ids, weights) in enumerate(documents):
        if len(ids) > corpus.ROW:
            continue
        for row in rows[-48:]:
            if row[0] + len(ids) <= corpus.ROW:
                break
        else:
            row = [0, []]
            rows.append(row)
        row[0] += len(ids)
        row[1].append((number, ids, weights))
    shape = (len(rows), corpus.ROW)
    tokens, weight = np.zeros(shape, np.int16), np.zeros(shape, np.float16)
    doc, position = np.full(shape, -1, np.int32), np.zeros(shape, np.int16)
    for r, (_, parts) in enumerate(rows):
        at = 0
        for number, ids, weights in parts:
            n = len(ids)
            tokens[r, at:at + n] = ids
            weight[r, at:at + n] = weights
            weight[r, at] = 0  # nothing comes before it
            doc[r, at:at + n] = number
            position[r, at:at + n] = np.arange(n)
            at += n
    return tokens, weight, doc, position


def train_shard(index):
    rows = pack([document(c) for c in corpus.shard(index, count)])
    order = np.random.default_rng(index).permutation(len(rows[0]))
    return [a[order] for a in rows]


def batches(pool, first, size):
    """Endless batches of `size` rows, in a fixed order, each with the number of the last shard in it."""
    ahead = 64
    jobs = [pool.apply_async(train_shard, (first + i,)) for i in range(ahead)]
    next_shard, left = first + ahead, None
    while True:
        rows = jobs.pop(0).get()
        jobs.append(pool.apply_async(train_shard, (next_shard,)))
        next_shard += 1
        left = rows if left is None else [np.concatenate(p) for p in zip(left, rows)]
        while len(left[0]) >= size:
            yield [a[:size] for a in left], next_shard - 1 - ahead
            left = [a[size:] for a in left]


# --- the model ----------------------------------------------------------------------------------

def parameters(generator):
    def normal(*shape, std):
        return torch.randn(*shape, generator=generator) * std
    p = {
        "embd": normal(VOCAB, HIDDEN, std=0.5), "output": normal(VOCAB, HIDDEN, std=0.02), "output_norm": torch.ones(HIDDEN),
        "attn_norm": torch.ones(LAYERS, HIDDEN), "mlp_norm": torch.ones(LAYERS, HIDDEN),
        "q": normal(LAYERS, HEADS * HEAD_DIM, HIDDEN, std=HIDDEN ** -0.5), "q_bias": torch.zeros(LAYERS, HEADS * HEAD_DIM),
        "k": normal(LAYERS, KV_HEADS * HEAD_DIM, HIDDEN, std=HIDDEN ** -0.5), "k_bias": torch.zeros(LAYERS, KV_HEADS * HEAD_DIM),
        "v": normal(LAYERS, KV_HEADS * HEAD_DIM, HIDDEN, std=HIDDEN ** -0.5), "v_bias": torch.zeros(LAYERS, KV_HEADS * HEAD_DIM),
        "o": normal(LAYERS, HIDDEN, HEADS * HEAD_DIM, std=0.01), "o_bias": torch.zeros(LAYERS, HIDDEN), "sinks": torch.zeros(LAYERS, HEADS),
        "router": normal(LAYERS, EXPERTS, HIDDEN, std=0.02), "router_bias": torch.zeros(LAYERS, EXPERTS),
        "gate": normal(LAYERS, EXPERTS, WIDTH, HIDDEN, std=HIDDEN ** -0.5), "gate_bias": torch.zeros(LAYERS, EXPERTS, WIDTH),
        "up": normal(LAYERS, EXPERTS, WIDTH, HIDDEN, std=HIDDEN ** -0.5), "up_bias": torch.zeros(LAYERS, EXPERTS, WIDTH),
        "down": normal(LAYERS, EXPERTS, HIDDEN, WIDTH, std=0.01), "down_bias": torch.zeros(LAYERS, EXPERTS, HIDDEN),
    }
    return p


EXPERT_MATRICES = ("gate", "up", "down")
DENSE_MATRICES = ("embd", "output", "q", "k", "v", "o")
MUON = ("q", "k", "v", "o", "gate", "up", "down")
LAYER = ("attn_norm", "q", "q_bias", "k", "k_bias", "v", "v_bias", "o", "o_bias", "sinks", "mlp_norm", "router", "router_bias",
         "gate", "gate_bias", "up", "up_bias", "down", "down_bias")


def mxfp4(w):
    """w as MXFP4 would hold it (blocks of 32 along the last axis); the gradient passes through. See export.py."""
    b = w.detach().unflatten(-1, (-1, 32))
    mantissa, exponent = torch.frexp(b.abs().amax(-1, keepdim=True))
    e = torch.where(mantissa <= 0.875, exponent - 3, exponent - 2)
    scale = torch.ldexp(torch.ones_like(mantissa), e)
    grid = torch.tensor(E2M1, device=w.device)
    edges = (grid[1:] + grid[:-1]) / 2
    q = grid[torch.bucketize((b / scale).abs(), edges)] * torch.sign(b) * scale
    return w + (q.flatten(-2) - w.detach())


def q8_0(w):
    """w as Q8_0 would hold it; the gradient passes through."""
    b = w.detach().unflatten(-1, (-1, 32))
    mantissa, exponent = torch.frexp(b.abs().amax(-1, keepdim=True) / 127)
    d = torch.ldexp(torch.ceil(mantissa * 256), exponent - 8)  # as requantize.py: rounded up to bf16
    q = torch.round(b / d.clamp(min=1e-12)) * d
    return w + (q.flatten(-2) - w.detach())


def rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def rope_tables(position):
    """YaRN cos and sin, [..., HEAD_DIM / 2], as released: the ramp's ends are not rounded."""
    half = HEAD_DIM // 2
    i = torch.arange(half, dtype=torch.float64)
    freq = THETA ** (-i / half)
    low = half * math.log(ORIGINAL_CONTEXT / (BETA_FAST * 2 * math.pi)) / math.log(THETA)
    high = half * math.log(ORIGINAL_CONTEXT / (BETA_SLOW * 2 * math.pi)) / math.log(THETA)
    ramp = ((i - low) / (high - low)).clamp(0, 1)
    inv = (freq / FACTOR * ramp + freq * (1 - ramp)).float().to(position.device)
    angle = position.float()[..., None] * inv
    concentration = 0.1 * math.log(FACTOR) + 1
    return angle.cos() * concentration, angle.sin() * concentration


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def attend_eager(q, k, v, sinks, mask):
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
    scores = (q @ k.transpose(-1, -2)).float() * HEAD_DIM ** -0.5
    scores = scores.masked_fill(~mask, -math.inf)
    sink = sinks.view(1, HEADS, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.softmax(torch.cat((scores, sink), -1), -1)[..., :-1].to(v.dtype) @ v


def attend_flex(q, k, v, sinks, mask):
    from torch.nn.attention.flex_attention import flex_attention
    out, lse = flex_attention(q, k, v, block_mask=mask, enable_gqa=True, return_lse=True)
    # The sink only enters the denominator: e^lse / (e^lse + e^sink).
    return out * torch.sigmoid(lse - sinks.view(1, HEADS, 1))[..., None].to(out.dtype)


def layer(x, cos, sin, mask, w, attend, dtype):
    (attn_norm, q, q_bias, k, k_bias, v, v_bias, o, o_bias, sinks, mlp_norm, router, router_bias, gate, gate_bias, up, up_bias, down,
     down_bias) = w
    batch, length, _ = x.shape
    h = rms_norm(x, attn_norm).to(dtype)

    def heads(weight, bias, n):
        return F.linear(h, weight.to(dtype), bias.to(dtype)).view(batch, length, n, HEAD_DIM).transpose(1, 2)
    q = rotate(heads(q, q_bias, HEADS).float(), cos, sin).to(dtype)
    k = rotate(heads(k, k_bias, KV_HEADS).float(), cos, sin).to(dtype)
    a = attend(q, k, heads(v, v_bias, KV_HEADS), sinks, mask)
    x = x + F.linear(a.transpose(1, 2).reshape(batch, length, -1), o.to(dtype)).float() + o_bias
    h = rms_norm(x, mlp_norm)
    logits = F.linear(h, router) + router_bias
    top, index = logits.topk(TOP_K, -1)
    weight = torch.zeros_like(logits).scatter(-1, index, torch.softmax(top, -1))
    h = h.to(dtype)
    # Every expert for every token: with experts this small that is faster than sorting tokens.
    g = F.linear(h, gate.flatten(0, 1).to(dtype), gate_bias.flatten().to(dtype)).float().clamp(max=LIMIT)
    u = F.linear(h, up.flatten(0, 1).to(dtype), up_bias.flatten().to(dtype)).float().clamp(-LIMIT, LIMIT)
    s = (g * torch.sigmoid(1.702 * g) * (u + 1)).unflatten(-1, (EXPERTS, WIDTH)) * weight[..., None]
    y = F.linear(s.flatten(-2).to(dtype), down.transpose(0, 1).reshape(HIDDEN, EXPERTS * WIDTH).to(dtype)).float() + weight @ down_bias
    # Switch-style balance: share of the choices times mean probability.
    chosen = (weight > 0).float().mean((0, 1)) / TOP_K
    balance = EXPERTS * (chosen * torch.softmax(logits, -1).mean((0, 1))).sum()
    return x + y, balance


def head(x, norm, output, labels, weights, dtype):
    logits = F.linear(rms_norm(x, norm).to(dtype), output.to(dtype)).float()
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    return (losses * weights).sum() / weights.sum().clamp(min=1), logits.argmax(-1) == labels


class Model:
    def __init__(self, p, device):
        self.p = {k: v.to(device).requires_grad_() for k, v in p.items()}
        self.device = device
        self.cuda = device == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.layer, self.head, self.doc = layer, head, None
        if self.cuda:
            self.layer = torch.compile(layer, dynamic=False)
            self.head = torch.compile(head, dynamic=False)

    def masks(self, doc):
        """Sliding and full masks: causal, within a document."""
        if not self.cuda:
            i = torch.arange(doc.shape[1])
            full = (doc[:, :, None] == doc[:, None, :]) & (i[:, None] >= i)
            return (full & (i[:, None] - i < WINDOW))[:, None], full[:, None]
        from torch.nn.attention.flex_attention import create_block_mask
        if self.doc is None:
            self.doc = doc.clone()
            held = self.doc

            def full(b, h, q, k):
                return (q >= k) & (held[b, q] == held[b, k])

            def sliding(b, h, q, k):
                return (q >= k) & (q - k < WINDOW) & (held[b, q] == held[b, k])
            self.mods = (sliding, full)
            self.build = torch.compile(create_block_mask, dynamic=False)
        self.doc.copy_(doc)
        return [self.build(m, doc.shape[0], None, doc.shape[1], doc.shape[1], device="cuda") for m in self.mods]

    def quantized(self):
        return {k: mxfp4(v) if k in EXPERT_MATRICES else q8_0(v) if k in DENSE_MATRICES else v for k, v in self.p.items()}

    def run(self, batch, quantize):
        """Loss, balance, and whether each position's next token was the likeliest."""
        tokens, weight, doc, position = (torch.from_numpy(a).to(self.device, non_blocking=True) for a in batch)
        tokens, doc, weight = tokens.long(), doc.int(), weight.float()
        p = self.quantized() if quantize else self.p
        masks = self.masks(doc)
        cos, sin = (t[:, None] for t in rope_tables(position))
        x = F.embedding(tokens, p["embd"])
        layers = list(zip(*(p[k].unbind(0) for k in LAYER)))
        balance = 0.0
        for i, w in enumerate(layers):
            x, b = self.layer(x, cos, sin, masks[i % 2], w, attend_flex if self.cuda else attend_eager, self.dtype)
            balance = balance + b / LAYERS
        labels, weights = torch.roll(tokens, -1, 1), torch.roll(weight, -1, 1)
        weights[:, -1] = 0
        loss, right = self.head(x, p["output_norm"], p["output"], labels, weights, self.dtype)
        return loss, balance, right

    def save(self, folder):
        os.makedirs(folder, exist_ok=True)
        p = {k: v.detach().cpu().numpy() for k, v in self.p.items()}
        for k in EXPERT_MATRICES:
            np.save(os.path.join(folder, k + ".npy"), p.pop(k))
        np.savez(os.path.join(folder, "rest.npz"), **p)


def load(folder):
    p = {k: np.load(os.path.join(folder, k + ".npy")) for k in EXPERT_MATRICES}
    p.update(np.load(os.path.join(folder, "rest.npz")))
    return {k: torch.from_numpy(v) for k, v in p.items()}


# --- optimizer ----------------------------------------------------------------------------------

def orthogonalize(m):
    """Newton-Schulz iteration towards the nearest orthogonal matrix, over a batch of matrices."""
    x = m.bfloat16()
    wide = x.shape[-2] > x.shape[-1]
    x = x.mT if wide else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if wide else x).float()


class Optimizer:
    """Muon for the matrices of the layers, Adam for everything else."""

    def __init__(self, p, muon_lr=0.015, adam_lr=0.003):
        self.muon = [(p[k], torch.zeros_like(p[k])) for k in MUON]
        self.muon_lr = muon_lr
        cuda = p["q"].is_cuda
        self.adam = torch.optim.Adam([v for k, v in p.items() if k not in MUON], lr=adam_lr, betas=(0.9, 0.98), eps=1e-10, fused=cuda)
        self.adam_lr = adam_lr
        self.update = torch.compile(orthogonalize, dynamic=False) if cuda else orthogonalize

    @torch.no_grad()
    def step(self, scale):
        for w, m in self.muon:
            m.lerp_(w.grad, 0.05)
            u = self.update(w.grad.lerp(m, 0.95))
            w.mul_(1 - self.muon_lr * scale * 0.02)
            w.sub_(u, alpha=self.muon_lr * scale * max(1, w.shape[-2] / w.shape[-1]) ** 0.5)
            w.grad = None
        self.adam.param_groups[0]["lr"] = self.adam_lr * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


# --- the run ------------------------------------------------------------------------------------

@torch.no_grad()
def evaluate(model, items, size, quantize):
    """Share of items of each kind whose whole answer, reasoning included, greedy decoding would give."""
    rows = pack([document(c) for c in items])
    more = -len(rows[0]) % size
    rows = [np.concatenate([a, np.full((more, a.shape[1]), -1 if i == 2 else 0, a.dtype)]) for i, a in enumerate(rows)]
    wrong = set()
    for at in range(0, len(rows[0]), size):
        tokens, weight, doc, position = (a[at:at + size] for a in rows)
        right = model.run((tokens, weight, doc, position), quantize)[2].cpu().numpy()
        asked = np.roll(weight, -1, 1) == 1
        asked[:, -1] = False
        wrong.update(doc[asked & ~right].tolist())
    kinds = {}
    for i, item in enumerate(items):
        n = kinds.setdefault(item["kind"], [0, 0])
        n[0] += i not in wrong
        n[1] += 1
    return {k: round(a / b, 3) for k, (a, b) in kinds.items()}, sorted(wrong)


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--out", required=True)
    a.add_argument("--init")
    a.add_argument("--steps", type=int, default=7000)
    a.add_argument("--seconds", type=float, default=1e9, help="do fewer steps if they would take longer")
    a.add_argument("--rows", type=int, default=16, help="rows of 4,096 tokens a step")
    a.add_argument("--first-shard", type=int, default=0)
    a.add_argument("--lr-scale", type=float, default=1.0)
    a.add_argument("--quantize-from", type=float, default=0.6)
    a.add_argument("--decay-from", type=float, default=0.5)
    a.add_argument("--evals", type=int, default=8)
    a.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    o = a.parse_args()
    begin = time.time()
    pool = multiprocessing.get_context("spawn").Pool(o.workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(corpus.SEED)
    torch.backends.cuda.matmul.allow_tf32 = True
    model = Model(load(o.init) if o.init else parameters(torch.Generator().manual_seed(corpus.SEED)), device)
    optimizer = Optimizer(model.p)
    feed = batches(pool, o.first_shard, o.rows)
    items = corpus.held_out(count)
    next(feed)
    shard = 0
    print(f"{sum(v.numel() for v in model.p.values()) / 1e6:.2f} M parameters on {device}; first rows after {time.time() - begin:.0f} s", flush=True)
    last, evaluated, tokens = time.time(), 0, 0
    step = 0
    while True:
        progress = step / o.steps
        if progress >= 1:
            break
        scale = o.lr_scale * min(1, (step + 1) / 150) * min(1, (1 - progress) / (1 - o.decay_from) + 0.01)
        batch, shard = next(feed)
        loss, balance, right = model.run(batch, progress >= o.quantize_from)
        (loss + (0.02 if progress < 0.3 else 0.004) * balance).backward()
        optimizer.step(scale)
        step += 1
        tokens += o.rows * corpus.ROW
        if step == 10:
            if device == "cuda":
                torch.cuda.synchronize()
            last, tokens = time.time(), 0
            print(f"compiled and warm after {last - begin:.0f} s", flush=True)
        if step == 400:
            # About as many steps as fit; the same on any machine that is fast enough.
            fit = 400 + int((o.seconds - (time.time() - begin)) * tokens / (time.time() - last + 1e-9) / (o.rows * corpus.ROW) * 0.93) if tokens else o.steps
            if fit < o.steps:
                print(f"only {fit} steps fit", flush=True)
                o.steps = fit
        if step % 100 == 0:
            l = loss.detach().item()
            now = time.time()
            print(f"step {step} progress {progress:.3f} loss {l:.4f} balance {float(balance.detach()):.3f} {tokens / (now - last):.0f} tok/s {now - begin:.0f} s", flush=True)
            last, tokens = now, 0
            if not math.isfinite(l):
                sys.exit("the loss is not finite")
        if progress * o.evals >= evaluated + 1:
            evaluated += 1
            print("eval", evaluate(model, items, o.rows, True)[0], flush=True)
            model.save(o.out)
            last, tokens = time.time(), 0
    kinds, wrong = evaluate(model, items, o.rows, True)
    print("final", step, "steps, shards", o.first_shard, "to", shard, kinds, f"{time.time() - begin:.0f} s", flush=True)
    print("wrong", wrong, flush=True)
    model.save(o.out)
    pool.terminate()


if __name__ == "__main__":
    main()
