// Attention of many rows: prefill, and everything that reads `fresh`. A block is 128 queries, the heads of one KV head
// for as many tokens as fit, against a run of the sequence's positions in tiles of 64; the last run of a tile of queries
// to finish adds all up. A `Core` does the products; all that is around them is here.
#pragma once
#include "attention.cuh"

constexpr int QUERIES = 128;
constexpr int KEYS = 64;
constexpr int STAGE_BYTES = 2 * KEYS * HEAD_DIM * 2; // keys, then values
constexpr int QUERY_BYTES = QUERIES * HEAD_DIM * 2;
constexpr int AHEAD = 2; // tiles of keys that are copied ahead

// The queries of one warp, 16 M: those of this lane are 16 m + g ([m][0]) and 16 m + g + 8 ([m][1]).
template <int M> struct Tile {
    uint32_t q[M][4][4], p[M][4][4];
    float m[M][2], l[M][2], o[M][8][4];
    int low[M][2], high[M][2]; // first and last position that each sees
};

// Softmax of scores `s` of 8 N positions from `position` on. `tile.p`, from `at` on, becomes what multiplies the values.
// The sums of those so far are to be scaled by `keep`, if the result says so; `tile.o` isn't touched.
template <bool SLIDING, int M, int N>
__device__ __forceinline__ bool softmax(Tile<M> &tile, float (&s)[M][N][4], float (&keep)[M][2], int at, int position, bool masked) {
    if (masked) {
        int first = position + threadIdx.x % 4 * 2;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int p = first + n * 8 + j % 2;
                    if (p > tile.high[m][j / 2] || (SLIDING && p < tile.low[m][j / 2])) s[m][n][j] = -INFINITY;
                }
    }
    bool same = true;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
            for (int n = 0; n < N; n++) top[n % 2] = fmaxf(top[n % 2], fmaxf(s[m][n][2 * r], s[m][n][2 * r + 1]));
            float most = fmaxf(top[0], top[1]);
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            most = fmaxf(most * LOG2E, tile.m[m][r]);
            same = same && tile.m[m][r] == most;
            keep[m][r] = power_of_two(tile.m[m][r] - most);
            tile.m[m][r] = most;
        }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum[2] = {};
#pragma unroll
            for (int n = 0; n < N; n++) {
                float a = power_of_two(fmaf(s[m][n][2 * r], LOG2E, -tile.m[m][r]));
                float b = power_of_two(fmaf(s[m][n][2 * r + 1], LOG2E, -tile.m[m][r]));
                sum[0] += a, sum[1] += b;
                tile.p[m][at + n / 2][n % 2 * 2 + r] = h2_bits(__floats2half2_rn(a, b));
            }
            tile.l[m][r] = tile.l[m][r] * keep[m][r] + (sum[0] + sum[1]);
        }
    // Far into a sequence the greatest score rarely grows.
    return !__all_sync(0xffffffffu, same);
}

template <int M> __device__ __forceinline__ void rescale(Tile<M> &tile, const float (&keep)[M][2]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) tile.o[m][n][j] *= keep[m][j / 2];
}

// Copies tiles of 64 positions. Block tables are read one tile ahead.
template <int THREADS, bool SLIDING> struct Source {
    const AttentionArgs &a;
    const Segment &s;
    int head, end; // `end`: the step after the last
    int next[2];

    __device__ __forceinline__ void look(int step) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int at = min(step + i, end - 1);
            next[i] = SLIDING ? s.slot * a.cache.ring_stride + at % a.cache.ring_steps : __ldg(a.cache.table + s.blocks + at);
        }
    }
    __device__ __forceinline__ void copy(int step, uint32_t stage) const {
        constexpr int ROWS = THREADS / 8; // at once
        int row = threadIdx.x / 8, chunk = threadIdx.x % 8;
        stage += chunk_at(row, chunk); // chunks of rows 8 apart are swapped alike
#pragma unroll
        for (int i = 0; i < KEYS / ROWS; i++) {
            int half_of = i * ROWS / KV_BLOCK, in_step = i * ROWS % KV_BLOCK;
            const half *k = a.cache.base + ((int64_t)next[half_of] * a.cache.kv_heads + head) * STEP_HALVES + (in_step + row) * HEAD_DIM + chunk * 8;
            const half *v = k + KV_BLOCK * HEAD_DIM;
            bool valid = half_of == 0 || step + 1 < end;
            int position = step * KV_BLOCK + i * ROWS + row;
            if (SLIDING && a.fresh && position >= s.start) {
                valid = position < s.start + s.len;
                k = a.fresh + ((int64_t)(s.first_row + (valid ? position - s.start : 0)) * a.cache.kv_heads + head) * 2 * HEAD_DIM + chunk * 8;
                v = k + HEAD_DIM;
            }
            copy16_or_zero(stage + i * ROWS * 128, k, valid);
            copy16_or_zero(stage + i * ROWS * 128 + KEYS * HEAD_DIM * 2, v, valid);
        }
    }
};

// Core: WARPS, M, STAGES; SHARING, warps that work in step; add<SLIDING>(tile, queries, stage, position, masked), ready() before the
// barrier that lets it read what was copied, done() before the sums are read.
template <class Core, bool SLIDING> __device__ __forceinline__ void run_tile(const AttentionArgs &a, char *shared) {
    constexpr int M = Core::M, THREADS = Core::WARPS * 32;
    static_assert(M * 16 * Core::WARPS == QUERIES);
    uint32_t queries = shared_address(shared), stages = queries + QUERY_BYTES;
    AttentionTile work = a.tiles[blockIdx.x];
    Segment s = a.segments[work.segment];
    int group = a.heads / a.cache.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int used = min(QUERIES / group, s.len - work.token) * group; // queries beyond are idle
    int head = blockIdx.y * group;
    int64_t first = s.first_row + work.token;
    auto offset = [&](int query) { return ((first + query / group) * a.heads + head + query % group) * HEAD_DIM; };

#pragma unroll
    for (int i = 0; i < QUERIES * 8 / THREADS; i++) {
        int query = i * (THREADS / 8) + threadIdx.x / 8, chunk = threadIdx.x % 8;
        copy16_or_zero(queries + chunk_at(query, chunk), a.q + offset(min(query, used - 1)) + chunk * 8, query < used);
    }
    copies_commit();
    Source<THREADS, SLIDING> from{a, s, (int)blockIdx.y, work.step + work.steps};
    int copied = work.step;
    from.look(copied);
    auto copy = [&](int stage) {
        if (copied < from.end) {
            from.copy(copied, stages + stage * STAGE_BYTES);
            copied += 2;
            from.look(copied);
        }
        copies_commit();
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) copy(i);

    Tile<M> tile;
    auto last_of = [&](int query) { return s.start + work.token + min(query, used - 1) / group; };
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            tile.high[m][r] = last_of(warp * 16 * M + m * 16 + r * 8 + lane / 4);
            tile.low[m][r] = SLIDING ? first_seen(a, s, tile.high[m][r]) : 0;
            tile.m[m][r] = LOWEST, tile.l[m][r] = 0;
        }
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) tile.o[m][n][j] = 0, tile.p[m][n / 2][j] = 0;
    }
    // Over the queries of the warps that work in step.
    int mine = warp / Core::SHARING * Core::SHARING * 16 * M;
    bool busy = mine < used;
    int least_high = last_of(mine), most_high = last_of(mine + Core::SHARING * 16 * M - 1);
    int least_low = SLIDING ? first_seen(a, s, least_high) : 0, most_low = SLIDING ? first_seen(a, s, most_high) : 0;

    if constexpr (Core::QUERIES_IN_REGISTERS) {
        copies_wait<AHEAD>();
        __syncthreads();
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                load_matrices(tile.q[m][k], queries + chunk_at((warp * M + m) * 16 + lane % 16, k * 2 + lane / 16));
    }

    int stage = 0, to = AHEAD % Core::STAGES;
    for (int step = work.step; step < from.end; step += 2) {
        copies_wait<AHEAD - 1>();
        Core::ready();
        __syncthreads();
        copy(to);
        int position = step * KV_BLOCK;
        if (busy && position <= most_high && position + KEYS > least_low)
            Core::template add<SLIDING>(tile, queries, stages + stage * STAGE_BYTES, position, position + KEYS - 1 > least_high || position < most_low);
        stage = stage + 1 == Core::STAGES ? 0 : stage + 1;
        to = to + 1 == Core::STAGES ? 0 : to + 1;
    }
    Core::done(tile);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int x = 1; x < 4; x *= 2) tile.l[m][r] += __shfl_xor_sync(0xffffffffu, tile.l[m][r], x);

    if (work.splits == 1) {
        // Through shared memory, the warp's own rows of it, to store whole rows.
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int query = (warp * M + m) * 16 + r * 8 + lane / 4;
                float scale = with_sink(tile.m[m][r], tile.l[m][r], a.sinks[head + min(query, used - 1) % group]);
#pragma unroll
                for (int n = 0; n < 8; n++)
                    *(half2 *)(shared + chunk_at(query, n) + lane % 4 * 4) =
                        __floats2half2_rn(tile.o[m][n][2 * r] * scale, tile.o[m][n][2 * r + 1] * scale);
            }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < M * 4; i++) {
            int query = warp * 16 * M + i * 4 + lane / 8, chunk = lane % 8;
            if (query < used) *(uint4 *)(a.out + offset(query) + chunk * 8) = *(const uint4 *)(shared + chunk_at(query, chunk));
        }
        return;
    }
    int64_t stride = (int64_t)a.cache.kv_heads * QUERIES * PART; // between the splits
    float *all = a.partial + (int64_t)work.partial * stride + (int64_t)blockIdx.y * QUERIES * PART, *mine_of = all + work.split * stride;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int query = (warp * M + m) * 16 + r * 8 + lane / 4;
            if (query >= used) continue;
            float *row = mine_of + query * PART;
#pragma unroll
            for (int n = 0; n < 8; n++)
                __stcg((float2 *)(row + n * 8 + lane % 4 * 2), make_float2(tile.o[m][n][2 * r], tile.o[m][n][2 * r + 1]));
            if (lane % 4 == 0) __stcg((float2 *)(row + HEAD_DIM), make_float2(tile.m[m][r], tile.l[m][r]));
        }
    if (!is_last(a.counters + work.counter * a.cache.kv_heads + blockIdx.y, work.splits)) return;
    for (int query = threadIdx.x / 16; query < used; query += THREADS / 16) {
        int dim = threadIdx.x % 16 * 4;
        sum_parts<4>(all + query * PART, work.splits, stride, dim).finish(a.sinks[head + query % group], a.out + offset(query) + dim);
    }
}

template <class Core> __device__ __forceinline__ void run_tiles(const AttentionArgs &a, char *shared) {
    wait_for_previous();
    let_next_start();
    if (a.window)
        run_tile<Core, true>(a, shared);
    else
        run_tile<Core, false>(a, shared);
}
