// What becomes of q, k and v once they are computed: bias, RoPE, and the KV cache.
#pragma once
#include "common.cuh"

struct QkvOut {
    half *q;             // [rows, heads, 64], rotated, divided by sqrt(64)
    half *fresh;         // [rows, kv_heads, 2, 64] keys and values of this batch, or null: straight to the cache
    Cache cache;
    const float *bias;   // [heads + 2 kv_heads, 64]
    const float *rope;   // [context, 2, 32]: cos, then sin, times the concentration
    const Row *rows;
    const Segment *segments;
    int32_t heads;
    int32_t kv_heads;
};

// Values `a` of dimension i < 32 and `b` of dimension i + 32 of head `head` of q | k | v of row `r`, as they come out of the product.
__device__ __forceinline__ void store_qkv(const QkvOut &o, int r, int head, int i, float a, float b) {
    const Row row = o.rows[r];
    a += o.bias[head * HEAD_DIM + i];
    b += o.bias[head * HEAD_DIM + i + 32];
    if (head < o.heads + o.kv_heads) {
        const float *table = o.rope + (int64_t)row.position * HEAD_DIM;
        float c = table[i], s = table[i + 32], t = a;
        a = a * c - b * s;
        b = b * c + t * s;
    }
    if (head < o.heads) {
        half *q = o.q + ((int64_t)r * o.heads + head) * HEAD_DIM + i;
        q[0] = __float2half_rn(a * 0.125f);
        q[32] = __float2half_rn(b * 0.125f);
        return;
    }
    bool value = head >= o.heads + o.kv_heads;
    int h = head - o.heads - (value ? o.kv_heads : 0);
    half *to;
    if (o.fresh) {
        to = o.fresh + (((int64_t)r * o.kv_heads + h) * 2 + value) * HEAD_DIM + i;
    } else {
        if (!o.cache.ring_steps && !row.append) return;
        to = cache_step(o.cache, o.segments[row.segment], row.position, h) + (value * KV_BLOCK + row.position % KV_BLOCK) * HEAD_DIM + i;
    }
    to[0] = __float2half_rn(fminf(fmaxf(a, -65504.0f), 65504.0f));
    to[32] = __float2half_rn(fminf(fmaxf(b, -65504.0f), 65504.0f));
}
