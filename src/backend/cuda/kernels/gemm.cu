// The product for few activations, and for every count before Hopper: mma.m16n8k16, eight warps a block.
//
// A block computes tiles x activations: 8 / split runs of `TALL` tiles by up to N activations. Each step takes 64
// inputs for each of the `split` parts of the warps; weights and activations pass through shared memory in `STAGES`
// stages of cp.async, so that a block keeps tens of kilobytes of loads under way. With few activations this is a
// stream of weights; parts of a tile's inputs go to several warps (`split`) where there are too few tiles to fill
// the device.
#include "gemm.cuh"

constexpr int WARPS = 8;

template <int FORMAT, int N> struct Shape {
    static constexpr int TALL = N == 128 ? 2 : 1; // tiles of a warp
    static constexpr int STAGES = N == 128 ? 3 : FORMAT == MXFP4 ? 6 - N / 64 : FORMAT == Q8_0 ? 4 : 3;
    static constexpr int WEIGHT_BYTES = WARPS * TALL * SLICE_BYTES<FORMAT>;
};

template <int FORMAT, int N> __device__ __forceinline__ void gemm(const GemmArgs &a) {
    using S = Shape<FORMAT, N>;
    extern __shared__ __align__(1024) uint8_t shared[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int runs = WARPS / a.split, part = warp / runs;
    const int tile = (blockIdx.x * runs + warp % runs) * S::TALL;
    const int stage_bytes = S::WEIGHT_BYTES + a.split * N * 128;
    const int steps = (a.units + UNITS<FORMAT> * a.split - 1) / (UNITS<FORMAT> * a.split);
    Columns<N> &columns = *reinterpret_cast<Columns<N> *>(shared + S::STAGES * stage_bytes);
    const uint32_t base = shared_address(shared);
    const uint32_t my_weights = base + warp * S::TALL * SLICE_BYTES<FORMAT>;

    // Weights of dense matrices are there before the previous kernel ends; an expert is known only after it.
    Work work{0, 0, 0, 0};
    const uint8_t *weights = nullptr;
    auto copy_weights = [&](int step) {
#pragma unroll
        for (int i = 0; i < S::TALL; i++) {
            const uint8_t *from = weights + (int64_t)(tile + i) * a.units * UNIT_BYTES;
            bool valid = tile + i < a.tiles;
            copy_slice<FORMAT>(my_weights + step % S::STAGES * stage_bytes + i * SLICE_BYTES<FORMAT>, valid ? from : weights,
                               step * a.split + part, a.units, valid, lane);
        }
    };
    if (a.work) {
        wait_for_previous();
        let_next_start();
        work = my_work(a, blockIdx.y);
        if (!work.count) return;
        weights = a.weights + (int64_t)work.expert * a.tiles * a.units * UNIT_BYTES;
        for (int s = 0; s < S::STAGES - 1; s++)
            if (s < steps) copy_weights(s);
    } else {
        weights = a.weights;
        for (int s = 0; s < S::STAGES - 1; s++)
            if (s < steps) copy_weights(s);
        wait_for_previous();
        let_next_start();
        work = my_work(a, blockIdx.y);
    }
    fill_columns(columns, a, work);
    __syncthreads();

    // Of the activations each thread copies 16 bytes here and there: chunk c of rows r, r + 32, ...
    constexpr int ROWS_AT_ONCE = N < 32 ? N : 32, PARTS_AT_ONCE = 32 / ROWS_AT_ONCE, TIMES = N / ROWS_AT_ONCE;
    const int chunk = threadIdx.x & 7, r = (threadIdx.x >> 3) % ROWS_AT_ONCE, first_part = (threadIdx.x >> 3) / ROWS_AT_ONCE;
    const half *rows[TIMES];
#pragma unroll
    for (int i = 0; i < TIMES; i++) rows[i] = a.input + (int64_t)columns.row[r + i * 32] * a.stride + chunk * 8;
    auto copy_activations = [&](int step) {
        uint32_t to = base + step % S::STAGES * stage_bytes + S::WEIGHT_BYTES + r * 128 + ((chunk ^ (r & 7)) << 4);
        for (int p = first_part; p < a.split; p += PARTS_AT_ONCE) {
            int k = (step * a.split + p) * 64;
#pragma unroll
            for (int i = 0; i < TIMES; i++) {
                bool valid = r + i * 32 < work.count && k < a.stride;
                copy16(to + (p * N + i * 32) * 128, valid ? rows[i] + k : a.input, valid);
            }
        }
    };
    for (int s = 0; s < S::STAGES - 1; s++) {
        if (s < steps) copy_activations(s);
        commit_copies();
    }

    const uint8_t *exponents = a.exponents + ((int64_t)work.expert * a.tiles + min(tile, a.tiles - 1)) * 16;
    RowScale scales[S::TALL];
    float d[S::TALL][N / 8][4];
#pragma unroll
    for (int i = 0; i < S::TALL; i++) {
        scales[i] = row_scale(exponents + (tile + i < a.tiles ? i : 0) * 16, lane >> 2);
#pragma unroll
        for (int n = 0; n < N / 8; n++) d[i][n][0] = d[i][n][1] = d[i][n][2] = d[i][n][3] = 0.0f;
    }

    for (int step = 0; step < steps; step++) {
        wait_copies<S::STAGES - 2>();
        __syncthreads();
        if (step + S::STAGES - 1 < steps) {
            copy_weights(step + S::STAGES - 1);
            copy_activations(step + S::STAGES - 1);
        }
        commit_copies();
        const int at = step % S::STAGES * stage_bytes;
        const uint8_t *w = shared + at + warp * S::TALL * SLICE_BYTES<FORMAT>;
        const uint32_t b_row = base + at + S::WEIGHT_BYTES + (part * N + (lane & 7)) * 128;
#pragma unroll
        for (int half_ = 0; half_ < 2; half_++) {
            uint32_t frag[S::TALL][2][4];
#pragma unroll
            for (int i = 0; i < S::TALL; i++) decode<FORMAT>(frag[i], w + i * SLICE_BYTES<FORMAT>, half_, lane, scales[i]);
            const uint32_t from = b_row + (((half_ * 4 + (lane >> 3)) ^ (lane & 7)) << 4);
#pragma unroll
            for (int n = 0; n < N / 8; n++) {
                uint32_t b[4];
                load_matrices(b, from + n * 1024);
#pragma unroll
                for (int i = 0; i < S::TALL; i++) {
                    mma(d[i][n], frag[i][0], b[0], b[1], d[i][n]);
                    mma(d[i][n], frag[i][1], b[2], b[3], d[i][n]);
                }
            }
        }
    }

    // The parts of a tile come together in shared memory, in a fixed order; each part stores some of the activations.
    float4 *sums = reinterpret_cast<float4 *>(shared);
    constexpr int SUMS = N / 8 * 32; // of a warp
#pragma unroll
    for (int i = 0; i < S::TALL; i++) {
        wait_copies<0>();
        __syncthreads();
        float low = power(scales[i].low), high = power(scales[i].high);
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            sums[warp * SUMS + n * 32 + lane] = make_float4(d[i][n][0] * low, d[i][n][1] * low, d[i][n][2] * high, d[i][n][3] * high);
        __syncthreads();
        if (tile + i >= a.tiles) continue;
#pragma unroll 1
        for (int n = part; n * 8 < work.count; n += a.split) {
            float sum[4] = {};
            for (int p = 0; p < a.split; p++) {
                float4 v = sums[(warp % runs + p * runs) * SUMS + n * 32 + lane];
                sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
            }
            store(a, columns, work, tile + i, n * 8 + (lane & 3) * 2, sum, lane);
        }
    }
}

#define GEMM(name, format, n) \
    extern "C" __global__ void __launch_bounds__(256) gemm_##name##_##n(__grid_constant__ const GemmArgs a) { gemm<format, n>(a); }
#define GEMMS(name, format) GEMM(name, format, 16) GEMM(name, format, 32) GEMM(name, format, 64) GEMM(name, format, 128)
GEMMS(mxfp4, MXFP4)
GEMMS(q8_0, Q8_0)
GEMMS(f16, F16)
