// Attention of a few rows over a long cache: decode. A block is one row, eight query heads of one KV head, and a part of
// the row's positions; the last part of a row to finish adds all up.
//
// Each warp has steps of its own and a ring of copies in flight, so the loop has no barrier. Keys are the rows of the
// product and heads its eight columns: no part of it is idle.
#include "attention.cuh"

constexpr int STEP_BYTES = STEP_HALVES * 2;

// The sums of one warp: 8 heads, columns 2t and 2t + 1 of this lane.
struct Sums {
    float m[2], l[2], o[4][4];
};

// Where a step of the warp's is, one ahead of the copies, so that no copy waits for the block table.
struct Steps {
    const AttentionArgs &a;
    const Segment &s;
    int head;
    int next; // counted in steps of all heads

    __device__ __forceinline__ void look(int step) {
        next = a.cache.ring_steps ? s.slot * a.cache.ring_stride + step % a.cache.ring_steps
                                  : __ldg(a.cache.table + s.blocks + step);
    }
    __device__ __forceinline__ const char *at() const {
        return (const char *)(a.cache.base + ((int64_t)next * a.cache.kv_heads + head) * STEP_HALVES);
    }
};

__device__ __forceinline__ void copy_step(uint32_t stage, const char *from) {
    int lane = threadIdx.x % 32, row = lane / 8, chunk = lane % 8;
#pragma unroll
    for (int i = 0; i < STEP_BYTES / 512; i++)
        copy16(stage + chunk_at(row + 4 * i, chunk), from + i * 512 + lane * 16);
}

// Scores of 32 positions from `position` on, their softmax, and their values' sum.
__device__ __forceinline__ void add_step(Sums &sums, const uint32_t (&q)[4][2], uint32_t stage, int position, int first, int last) {
    int lane = threadIdx.x % 32, row = lane % 8, sub = lane / 8;
    // All that is read from shared memory is asked for at once, values too: nothing waits twice.
    uint32_t keys[2][4][4], values[2][4][4];
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int k = 0; k < 4; k++)
            load_matrices(keys[i][k], stage + chunk_at(i * 16 + (sub & 1) * 8 + row, k * 2 + (sub >> 1)));
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int d = 0; d < 4; d++)
            load_transposed(values[i][d], stage + KV_BLOCK * HEAD_DIM * 2 + chunk_at(i * 16 + (sub >> 1) * 8 + row, d * 2 + (sub & 1)));
    float s[2][4] = {};
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int i = 0; i < 2; i++) mma(s[i], keys[i][k], q[k][0], q[k][1], s[i]);
    if (position < first || position + KV_BLOCK - 1 > last) {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int p = position + i * 16 + (j >> 1) * 8 + lane / 4;
                if (p < first || p > last) s[i][j] = -INFINITY;
            }
    }
    uint32_t p[2][2];
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float top = fmaxf(fmaxf(s[0][c], s[0][c + 2]), fmaxf(s[1][c], s[1][c + 2]));
#pragma unroll
        for (int x = 4; x < 32; x *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, x));
        top = fmaxf(top * LOG2E, sums.m[c]);
        float keep = power_of_two(sums.m[c] - top);
        sums.m[c] = top;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int j = c; j < 4; j += 2) s[i][j] = power_of_two(fmaf(s[i][j], LOG2E, -top));
        sums.l[c] = sums.l[c] * keep + ((s[0][c] + s[0][c + 2]) + (s[1][c] + s[1][c + 2]));
#pragma unroll
        for (int d = 0; d < 4; d++) sums.o[d][c] *= keep, sums.o[d][c + 2] *= keep;
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 2; j++) p[i][j] = transpose(h2_bits(__floats2half2_rn(s[i][2 * j], s[i][2 * j + 1])));
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int d = 0; d < 4; d++) mma(sums.o[d], values[i][d], p[i][0], p[i][1], sums.o[d]);
}

// STAGES: steps of a warp in flight.
template <int WARPS, int STAGES> __device__ __forceinline__ void run_rows(const AttentionArgs &a, char *shared) {
    int group = a.heads / a.cache.kv_heads, tiles = (group + 7) / 8; // tiles of eight heads
    int kv_head = blockIdx.y / tiles, head = kv_head * group + blockIdx.y % tiles * 8;
    int heads = min(8, (kv_head + 1) * group - head);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int64_t r = a.list ? a.list[blockIdx.z] : blockIdx.z;
    Row row = a.rows[r];
    if (row.segment < 0) return; // padding
    Segment s = a.segments[row.segment];
    int first = first_seen(a, s, row.position), step = first / KV_BLOCK;
    int steps = row.position / KV_BLOCK + 1 - step;
    int parts = steps <= a.whole ? 1 : min((int)gridDim.x, (steps + a.least - 1) / a.least);
    if (blockIdx.x >= parts) return;
    int end = step + (int)((int64_t)steps * (blockIdx.x + 1) / parts);
    step += (int)((int64_t)steps * blockIdx.x / parts) + warp;

    constexpr int D = 8 * HEAD_DIM / (WARPS * 32);
    int h = threadIdx.x * D / HEAD_DIM, dim = threadIdx.x * D % HEAD_DIM; // what this thread adds up in the end
    float sink = a.sinks[head + min(h, heads - 1)];

    // What earlier batches wrote may be read before the kernel before this one has ended.
    uint32_t ring = shared_address(shared) + warp * STAGES * STEP_BYTES;
    Steps from{a, s, kv_head};
    if (step < end) from.look(step);
    int copied = step, early = min(end, s.start / KV_BLOCK);
    auto copy = [&](int stage) {
        const char *at = from.at();
        if (copied + WARPS < end) from.look(copied + WARPS);
        copy_step(ring + stage * STEP_BYTES, at);
        copied += WARPS;
    };
#pragma unroll
    for (int i = 0; i < STAGES; i++)
        if (copied < early) copy(i);
    wait_for_previous();
    let_next_start();
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        if (copied == step + i * WARPS && copied < end) copy(i);
        copies_commit();
    }

    uint32_t q[4][2];
    const half *query = a.q + (r * a.heads + head + lane / 4) * HEAD_DIM + lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int j = 0; j < 2; j++) q[k][j] = lane / 4 < heads ? *(const uint32_t *)(query + k * 16 + j * 8) : 0;

    Sums sums = {{LOWEST, LOWEST}};
    for (int stage = 0; step < end; step += WARPS) {
        copies_wait<STAGES - 1>();
        __syncwarp();
        add_step(sums, q, ring + stage * STEP_BYTES, step * KV_BLOCK, first, row.position);
        __syncwarp();
        if (copied < end) copy(stage);
        copies_commit();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
        for (int x = 4; x < 32; x *= 2) sums.l[c] += __shfl_xor_sync(0xffffffffu, sums.l[c], x);

    // The warps' sums meet in shared memory, where no copy is in flight any more.
    copies_wait<0>();
    __syncthreads();
    float *part = (float *)shared; // [warp][head][PART]
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float *to = part + (warp * 8 + lane % 4 * 2 + c) * PART;
#pragma unroll
        for (int d = 0; d < 4; d++) to[d * 16 + lane / 4] = sums.o[d][c], to[d * 16 + lane / 4 + 8] = sums.o[d][c + 2];
        if (lane < 4) to[HEAD_DIM] = sums.m[c], to[HEAD_DIM + 1] = sums.l[c];
    }
    __syncthreads();
    Part<D> sum;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        const float *p = part + (w * 8 + h) * PART;
        float o[D];
#pragma unroll
        for (int i = 0; i < D; i++) o[i] = p[dim + i];
        sum.add(p[HEAD_DIM], p[HEAD_DIM + 1], o);
    }
    int64_t tile = (int64_t)blockIdx.z * gridDim.y + blockIdx.y;
    if (parts > 1) {
        float *all = a.partial + (tile * gridDim.x * 8 + h) * PART, *to = all + blockIdx.x * 8 * PART;
        store_l2(to + dim, sum.o);
        if (dim == 0) __stcg((float2 *)(to + HEAD_DIM), make_float2(sum.m, sum.l));
        if (!is_last(a.counters + tile, parts)) return;
        sum = sum_parts<D>(all, parts, 8 * PART, dim);
    }
    if (h < heads) sum.finish(sink, a.out + (r * a.heads + head + h) * HEAD_DIM + dim);
}

// For few rows: a multiprocessor each.
extern "C" __global__ void __launch_bounds__(256) attention_rows(__grid_constant__ const AttentionArgs a) {
    extern __shared__ __align__(128) char shared[];
    run_rows<8, 2>(a, shared);
}

// For few rows that see at most eight steps.
extern "C" __global__ void __launch_bounds__(256) attention_rows_short(__grid_constant__ const AttentionArgs a) {
    extern __shared__ __align__(128) char shared[];
    run_rows<8, 1>(a, shared);
}

// For many rows: smaller blocks, several on a multiprocessor.
extern "C" __global__ void __launch_bounds__(128) attention_rows_many(__grid_constant__ const AttentionArgs a) {
    extern __shared__ __align__(128) char shared[];
    run_rows<4, 2>(a, shared);
}
