// Sorts the chosen (row, slot) pairs by expert, for the grouped products; and the largest scale of each row of tiles.
#include "gemm.cuh"

struct RouteArgs {
    const int32_t *ids;   // [pairs], pair = row * used + slot; below 0: no expert
    int32_t *order;       // [pairs], by expert, then as they come
    Work *work;           // at most `pairs / tile + experts`
    int32_t *work_count;
    unsigned long long *touched; // counts experts that have pairs; null: nobody asks
    int32_t pairs;
    int32_t experts;      // at most 128
    int32_t tile;         // most pairs in one piece of work
    int32_t pad;
};

constexpr int ROUTE_WARPS = 32, MOST_EXPERTS = 128;

// One block. Each warp has a run of pairs: it counts them by expert, learns where its own begin, and places them, so
// that the order is always the same.
extern "C" __global__ void __launch_bounds__(ROUTE_WARPS * 32) route(__grid_constant__ const RouteArgs a) {
    __shared__ int32_t counts[ROUTE_WARPS][MOST_EXPERTS];
    __shared__ int32_t first[MOST_EXPERTS + 1], first_work[MOST_EXPERTS + 1];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (int i = threadIdx.x; i < ROUTE_WARPS * MOST_EXPERTS; i += blockDim.x) (&counts[0][0])[i] = 0;
    wait_for_previous();
    let_next_start();
    __syncthreads();
    const int run = (a.pairs + ROUTE_WARPS * 32 - 1) / (ROUTE_WARPS * 32) * 32, begin = warp * run, end = min(begin + run, a.pairs);
    auto each = [&](auto visit) {
        for (int at = begin; at < end; at += 32) {
            int pair = at + lane, e = pair < end ? a.ids[pair] : -1;
            uint32_t same = __match_any_sync(0xffffffffu, e);
            int rank = __popc(same & ((1u << lane) - 1));
            visit(pair, e, rank, __popc(same)); // by all lanes; e < 0: none
            __syncwarp();
        }
    };
    each([&](int, int e, int rank, int many) {
        if (e >= 0 && !rank) counts[warp][e] += many;
    });
    __syncthreads();
    if (threadIdx.x < MOST_EXPERTS) {
        int sum = 0;
        for (int w = 0; w < ROUTE_WARPS; w++) {
            int count = counts[w][threadIdx.x];
            counts[w][threadIdx.x] = sum;
            sum += count;
        }
        first[threadIdx.x + 1] = sum;
        first_work[threadIdx.x + 1] = (sum + a.tile - 1) / a.tile;
    }
    __syncthreads();
    if (!warp) {
        int pairs = 0, work = 0;
        for (int e = 0; e < MOST_EXPERTS; e += 32) {
            int p = first[e + lane + 1], w = first_work[e + lane + 1];
            for (int m = 1; m < 32; m <<= 1) {
                int other_p = __shfl_up_sync(0xffffffffu, p, m), other_w = __shfl_up_sync(0xffffffffu, w, m);
                if (lane >= m) p += other_p, w += other_w;
            }
            first[e + lane + 1] = p + pairs;
            first_work[e + lane + 1] = w + work;
            pairs += __shfl_sync(0xffffffffu, p, 31);
            work += __shfl_sync(0xffffffffu, w, 31);
        }
        if (!lane) {
            first[0] = first_work[0] = 0;
            *a.work_count = work;
        }
    }
    __syncthreads();
    // An expert's pairs in equal pieces, of whole tensor-core columns.
    if (threadIdx.x < a.experts) {
        int e = threadIdx.x, count = first[e + 1] - first[e];
        if (a.touched && count) atomicAdd(a.touched, 1ull);
        int pieces = first_work[e + 1] - first_work[e];
        int piece = pieces ? ((count + pieces - 1) / pieces + 7) & ~7 : 0;
        for (int i = 0; i < pieces; i++)
            a.work[first_work[e] + i] = Work{e, first[e] + i * piece, max(0, min(piece, count - i * piece)), 0};
    }
    each([&](int pair, int e, int rank, int many) {
        int at = e < 0 ? 0 : first[e] + counts[warp][e];
        __syncwarp();
        if (e < 0) return;
        a.order[at + rank] = pair;
        if (!rank) counts[warp][e] += many;
    });
}

struct ExponentArgs {
    const uint8_t *data; // tiles of all experts
    uint8_t *exponents;  // [count, 16]
    int32_t format;
    int32_t count;       // tiles of all experts
    int32_t units;       // of a tile
    int32_t cols;        // inputs that count
};

// Exponent + 127 of each tile row's largest scale: E8M0's own, or of |d|, kept within what f16 can undo. A thread a row.
extern "C" __global__ void __launch_bounds__(256) row_exponents(__grid_constant__ const ExponentArgs a) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int g = at & 7, high = at >> 3 & 1;
    if (at >= (int64_t)a.count * 16) return;
    const uint8_t *scales = a.data + (at >> 4) * a.units * UNIT_BYTES + 512 + g * 4;
    int most = 0;
    if (a.format == MXFP4) {
        for (int block = 0; block * 32 < a.cols; block++)
            most = max(most, scales[block / 2 * UNIT_BYTES + block % 2 * 2 + high]);
    } else {
        for (int u = 0; u < a.units; u++) {
            uint16_t d = *reinterpret_cast<const uint16_t *>(scales + u * UNIT_BYTES + high * 2) & 0x7fff;
            most = max(most, d);
        }
        most = 127 + min(max((most >> 10) - 15, -14), 14);
    }
    a.exponents[at] = most;
}
