// What the attention kernels share: their arguments, copies into shared memory, and how partial sums meet.
//
// Softmax runs in powers of two. A partial sum of one query is 64 sums of p v, then m and l: p = 2^(s - m), l is the sum
// of p. The head's sink is one more logit whose value is zero; it joins where the parts meet.
#pragma once
#include "common.cuh"

// One tile of queries against a run of steps of 32 positions. The same in attention.rs.
struct AttentionTile {
    int32_t segment;
    int32_t token;   // first of the segment's tokens
    int32_t step;    // first step of the sequence
    int32_t steps;   // how many
    int32_t split;   // which part of the tile's positions this is
    int32_t splits;  // in how many parts they are
    int32_t partial; // 128 rows of partial sums: this number * kv_heads + kv head; split 0's
    int32_t counter; // counts the parts done: this number * kv_heads + kv head
};

// The same in attention.rs.
struct AttentionArgs {
    const half *q;       // [rows, heads, 64], divided by sqrt(64)
    half *out;           // [rows, heads, 64]
    const half *fresh;   // [rows, kv_heads, 2, 64]: this batch's positions, which the cache lacks; or null
    Cache cache;
    const Row *rows;
    const Segment *segments;
    const float *sinks;  // [heads]
    const AttentionTile *tiles; // attention_tiles: by blockIdx.x
    const int32_t *list; // attention_rows: the row of each blockIdx.z; or null: that row
    float *partial;      // [queries, PART]
    uint32_t *counters;  // zero between launches
    int32_t window;      // of a sliding layer, or 0
    int32_t heads;
    int32_t whole;       // attention_rows: most steps that stay in one part
    int32_t least;       // attention_rows: steps of a part, if there are several
};

constexpr int PART = HEAD_DIM + 4; // floats of a partial sum; two are padding
constexpr float LOG2E = 1.4426950408889634f;
constexpr float LOWEST = -1e30f; // below every logit, and finite: differences of two are no NaN

// First position that a row at `position` sees.
__device__ __forceinline__ int first_seen(const AttentionArgs &a, const Segment &s, int position) {
    return a.window ? max(position + 1 - a.window, s.window_from) : 0;
}

// --- Shared memory -----------------------------------------------------------------------------------------------
// Rows of 64 halves lie at 128 bytes with their 16-byte chunks swapped, so that eight rows' chunks meet eight different
// groups of banks.
__device__ __forceinline__ uint32_t chunk_at(int row, int chunk) { return row * 128 + ((chunk ^ (row & 7)) << 4); }

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void copy16(uint32_t to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// Zeros where `valid` is false; `from` must be an address of the cache even then.
__device__ __forceinline__ void copy16_or_zero(uint32_t to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
// The transpose of an 8x8 matrix of halves that the warp holds.
__device__ __forceinline__ uint32_t transpose(uint32_t x) {
    uint32_t y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// --- Partial sums ------------------------------------------------------------------------------------------------
// Counts a part done, after its sums were written. True in all threads of the block that is the last of `parts`: it may
// read the others'. Puts the counter back to zero.
__device__ __forceinline__ bool is_last(uint32_t *counter, int parts) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(counter, 1) == (uint32_t)parts - 1;
        if (last) {
            *counter = 0;
            __threadfence();
        }
    }
    __syncthreads();
    return last;
}

// What a query's sums are multiplied by in the end, with the sink.
__device__ __forceinline__ float with_sink(float m, float l, float sink) {
    sink *= LOG2E;
    float top = fmaxf(m, sink), keep = power_of_two(m - top);
    return keep / (l * keep + power_of_two(sink - top));
}

// D floats that lie side by side: 2 or 4.
template <int D> __device__ __forceinline__ void load_l2(float (&to)[D], const float *from) {
    if constexpr (D == 4) {
        float4 x = __ldcg((const float4 *)from);
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    } else {
        float2 x = __ldcg((const float2 *)from);
        to[0] = x.x, to[1] = x.y;
    }
}
template <int D> __device__ __forceinline__ void store_l2(float *to, const float (&from)[D]) {
    if constexpr (D == 4)
        __stcg((float4 *)to, make_float4(from[0], from[1], from[2], from[3]));
    else
        __stcg((float2 *)to, make_float2(from[0], from[1]));
}

// A running sum of parts: D of the 64 dimensions of one query.
template <int D> struct Part {
    float m = LOWEST, l = 0, o[D] = {};

    __device__ __forceinline__ void add(float m2, float l2, const float (&o2)[D]) {
        float top = fmaxf(m, m2), keep = power_of_two(m - top), take = power_of_two(m2 - top);
        m = top;
        l = l * keep + l2 * take;
#pragma unroll
        for (int i = 0; i < D; i++) o[i] = o[i] * keep + o2[i] * take;
    }

    // Stores the attention's result, with the sink.
    __device__ __forceinline__ void finish(float sink, half *to) const {
        float scale = with_sink(m, l, sink);
#pragma unroll
        for (int i = 0; i < D; i += 2) *(half2 *)(to + i) = __floats2half2_rn(o[i] * scale, o[i + 1] * scale);
    }
};

// Adds up `parts` partial sums of one query, `stride` floats apart; D dimensions from `dim` on.
template <int D> __device__ __forceinline__ Part<D> sum_parts(const float *first, int parts, int64_t stride, int dim) {
    constexpr int AT_ONCE = 8;
    Part<D> sum;
    for (int i = 0; i < parts; i += AT_ONCE) {
        float ml[AT_ONCE][2], o[AT_ONCE][D];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const float *p = first + min(i + j, parts - 1) * stride;
            load_l2(ml[j], p + HEAD_DIM);
            load_l2(o[j], p + dim);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j < parts) sum.add(ml[j][0], ml[j][1], o[j]);
    }
    return sum;
}
