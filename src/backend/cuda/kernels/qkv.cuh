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

// Dimensions i < 32 and i + 32 of head `head` of q | k | v of row `r`: what they need besides the product.
struct QkvPlace {
    half *to; // null: nowhere
    float cos, sin, bias_a, bias_b, scale;

    __device__ __forceinline__ void load(const QkvOut &o, int r, int head, int i) {
        const Row row = o.rows[r];
        const float *table = o.rope + (int64_t)row.position * HEAD_DIM;
        cos = table[i], sin = table[i + 32];
        bias_a = o.bias[head * HEAD_DIM + i], bias_b = o.bias[head * HEAD_DIM + i + 32];
        scale = 1.0f;
        if (head < o.heads) {
            to = o.q + ((int64_t)r * o.heads + head) * HEAD_DIM + i;
            scale = 0.125f;
            return;
        }
        bool value = head >= o.heads + o.kv_heads;
        int h = head - o.heads - (value ? o.kv_heads : 0);
        if (value) cos = 1.0f, sin = 0.0f;
        if (o.fresh)
            to = o.fresh + (((int64_t)r * o.kv_heads + h) * 2 + value) * HEAD_DIM + i;
        else if (!o.cache.ring_steps && !row.append)
            to = nullptr;
        else
            to = cache_step(o.cache, o.segments[row.segment], row.position, h) + (value * KV_BLOCK + row.position % KV_BLOCK) * HEAD_DIM + i;
    }
    // The products of the two dimensions.
    __device__ __forceinline__ void store(float a, float b) const {
        if (!to) return;
        a += bias_a, b += bias_b;
        to[0] = __float2half_rn(fminf(fmaxf((a * cos - b * sin) * scale, -65504.0f), 65504.0f));
        to[32] = __float2half_rn(fminf(fmaxf((b * cos + a * sin) * scale, -65504.0f), 65504.0f));
    }
};

__device__ __forceinline__ void store_qkv(const QkvOut &o, int r, int head, int i, float a, float b) {
    QkvPlace place;
    place.load(o, r, head, i);
    place.store(a, b);
}
