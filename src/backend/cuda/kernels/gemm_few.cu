// The product of experts with a few activations each, up to 24 a piece: a stream of weights.
//
// One block a multiprocessor. All tiles of all pieces of work (an expert and its activations) stand in one line, cut
// into equal stretches, one a block. A block keeps the activations of a piece in shared memory, whole rows, and cuts
// its tiles of that piece into equal runs of units, one a warp; a run is one stretch of memory, which the warp copies
// to a ring of its own, far ahead, waiting for nobody. Where a run begins inside a tile, its sums wait in shared
// memory for the warp in whose run the tile begins. Scales multiply f32 sums of 32 products here: with so few
// activations that costs no more than scaling the weights.
#include "gemm.cuh"

constexpr int SLOT_UNITS = 2; // units of a slot of the ring: one copy, one wait
constexpr int SLOTS = 5;
constexpr int SLOT_BYTES = SLOT_UNITS * UNIT_BYTES;

// d += (A b) * scales for one unit; `b` is the row in shared memory of this lane's ldmatrix address, `chunk` the first
// 16 bytes of the unit's inputs in it.
template <int FORMAT, int N>
__device__ __forceinline__ void unit_product(float (&d)[N / 8][4], const uint8_t *unit, uint32_t b, int chunk, int stride, int lane) {
    const float zero[4] = {0, 0, 0, 0};
    const uint4 w = reinterpret_cast<const uint4 *>(unit)[lane];
    const uint32_t s = reinterpret_cast<const uint32_t *>(unit + 512)[lane >> 2];
    const int row = lane & 7, mine = lane >> 3;
    if constexpr (FORMAT == F16) {
        // Half of 32 inputs: the even unit's fragment is the first two chunks, the odd one's the others. Lanes 16..31 read what the others do.
        const uint32_t a[4] = {w.x, w.z, w.y, w.w};
        const float2 scale = __half22float2(bits_h2(s));
#pragma unroll
        for (int n = 0; n < N / 8; n++) {
            uint32_t x[4];
            load_matrices(x, b + n * 8 * stride + (((chunk + (mine & 1)) ^ row) << 4));
            float c[4];
            mma(c, a, x[0], x[1], zero);
            d[n][0] += scale.x * c[0], d[n][1] += scale.x * c[1], d[n][2] += scale.y * c[2], d[n][3] += scale.y * c[3];
        }
    } else {
#pragma unroll
        for (int part = 0; part < (FORMAT == MXFP4 ? 2 : 1); part++) {
            uint32_t lo[4], hi[4];
            float low, high;
            if constexpr (FORMAT == MXFP4) {
                mxfp4_pairs(part ? w.z : w.x, lo);
                mxfp4_pairs(part ? w.w : w.y, hi);
                low = mxfp4_scale(s >> (16 * part) & 255), high = mxfp4_scale(s >> (16 * part + 8) & 255);
            } else {
                q8_pairs(w.x, lo[0], lo[1]), q8_pairs(w.y, lo[2], lo[3]);
                q8_pairs(w.z, hi[0], hi[1]), q8_pairs(w.w, hi[2], hi[3]);
                low = __low2float(bits_h2(s)), high = __high2float(bits_h2(s));
            }
            const uint32_t a0[4] = {lo[0], hi[0], lo[1], hi[1]}, a1[4] = {lo[2], hi[2], lo[3], hi[3]};
#pragma unroll
            for (int n = 0; n < N / 8; n++) {
                uint32_t x[4];
                load_matrices(x, b + n * 8 * stride + (((chunk + 4 * part + mine) ^ row) << 4));
                float c[4];
                mma(c, a0, x[0], x[1], zero);
                mma(c, a1, x[2], x[3], c);
                d[n][0] += low * c[0], d[n][1] += low * c[1], d[n][2] += high * c[2], d[n][3] += high * c[3];
            }
        }
    }
}

// First 16 bytes of unit `u`'s inputs in a row.
template <int FORMAT> __device__ __forceinline__ int unit_chunk(int u) {
    return FORMAT == MXFP4 ? u * 8 : FORMAT == Q8_0 ? u * 4 : u * 2;
}

template <int FORMAT, int N> __device__ __forceinline__ void gemm_few(const GemmArgs &a) {
    extern __shared__ __align__(128) uint8_t shared[];
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x >> 5;
    const int stride = a.stride * 2; // bytes of a row of activations
    // Activations, rings, partial sums, columns.
    uint8_t *const ring = shared + N * stride + warp * SLOTS * SLOT_BYTES;
    float4 *const partial = reinterpret_cast<float4 *>(shared + N * stride + warps * SLOTS * SLOT_BYTES);
    Columns<N> &columns = *reinterpret_cast<Columns<N> *>(partial + warps * N / 8 * 32);
    const uint32_t ring_address = shared_address(ring), rows_address = shared_address(shared);

    wait_for_previous();
    let_next_start();
    const int64_t all = (int64_t)*a.work_count * a.tiles;
    int64_t at = all * blockIdx.x / gridDim.x;
    const int64_t stop = all * (blockIdx.x + 1) / gridDim.x;
    while (at < stop) {
        const int column = (int)(at / a.tiles), first = (int)(at - (int64_t)column * a.tiles);
        const int tiles = (int)min((int64_t)(a.tiles - first), stop - at);
        at += tiles;
        const Work work = my_work(a, column);
        if (!work.count) continue;

        // This warp's run, in units of the stretch of tiles.
        const int units = tiles * a.units;
        int u = (int)((int64_t)units * warp / warps);
        const int end = (int)((int64_t)units * (warp + 1) / warps);
        const uint8_t *from = a.weights + ((int64_t)(work.expert * a.tiles + first) * a.units + u) * UNIT_BYTES;
        const int bytes = (end - u) * UNIT_BYTES;
        auto copy = [&](int slot) {
            uint32_t to = ring_address + slot % SLOTS * SLOT_BYTES;
            int begin = slot * SLOT_BYTES, chunks = min(SLOT_BYTES, bytes - begin);
#pragma unroll
            for (int i = 0; i < SLOT_BYTES; i += 512) {
                int c = i + lane * 16;
                if (c < chunks) copy16(to + c, from + begin + c, true);
            }
        };
        for (int s = 0; s < SLOTS - 1; s++) {
            if (s * SLOT_BYTES < bytes) copy(s);
            if (s < SLOTS - 2) commit_copies();
        }
        __syncthreads(); // of the piece before, all is read
        fill_columns(columns, a, work);
        __syncthreads();
        for (int i = threadIdx.x; i < work.count * (stride >> 4); i += blockDim.x) {
            int r = i / (stride >> 4), c = i - r * (stride >> 4);
            const uint8_t *row = reinterpret_cast<const uint8_t *>(a.input + (int64_t)columns.row[r] * a.stride);
            copy16(rows_address + r * stride + ((c ^ (r & 7)) << 4), row + c * 16, true);
        }
        commit_copies();
        wait_copies<0>();
        __syncthreads();

        float d[N / 8][4] = {};
        int tile = u / a.units, unit = u - tile * a.units;
        bool whole = unit == 0; // the tile begins in this run
        const uint32_t b = rows_address + (lane & 7) * stride;
        auto put = [&] {
#pragma unroll
            for (int n = 0; n < N / 8; n++) {
                partial[(warp * (N / 8) + n) * 32 + lane] = make_float4(d[n][0], d[n][1], d[n][2], d[n][3]);
                d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
            }
        };
        for (int slot = 0; u < end; slot++) {
            if (slot) wait_copies<SLOTS - 2>();
            __syncwarp();
            if ((slot + SLOTS - 1) * SLOT_BYTES < bytes) copy(slot + SLOTS - 1);
            commit_copies();
            const uint8_t *units_here = ring + slot % SLOTS * SLOT_BYTES;
#pragma unroll
            for (int i = 0; i < SLOT_UNITS; i++, u++) {
                if (u >= end) break;
                unit_product<FORMAT, N>(d, units_here + i * UNIT_BYTES, b, unit_chunk<FORMAT>(unit), stride, lane);
                if (++unit < a.units) continue;
                unit = 0;
                if (whole) {
#pragma unroll
                    for (int n = 0; n < N / 8; n++) {
                        store(a, columns, work, first + tile, n * 8 + (lane & 3) * 2, d[n], lane);
                        d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
                    }
                } else {
                    put();
                }
                whole = true;
                tile++;
            }
            __syncwarp(); // before the slot is copied to again
        }
        wait_copies<0>();
        // What is left is of a tile that ends in another run; where it also began in another, it is added there.
        const bool open = unit != 0;
        if (open && !whole) put();
        __syncthreads();
        if (open && whole) {
            for (int w = warp + 1; w < warps; w++) {
                int begin = (int)((int64_t)units * w / warps);
                if (begin >= (tile + 1) * a.units) break;
#pragma unroll
                for (int n = 0; n < N / 8; n++) {
                    float4 v = partial[(w * (N / 8) + n) * 32 + lane];
                    d[n][0] += v.x, d[n][1] += v.y, d[n][2] += v.z, d[n][3] += v.w;
                }
            }
#pragma unroll
            for (int n = 0; n < N / 8; n++) store(a, columns, work, first + tile, n * 8 + (lane & 3) * 2, d[n], lane);
        }
    }
}

#define GEMM(name, format, n) \
    extern "C" __global__ void __launch_bounds__(512, 1) gemm_few_##name##_##n(__grid_constant__ const GemmArgs a) { gemm_few<format, n>(a); }
#define GEMMS(name, format) GEMM(name, format, 8) GEMM(name, format, 16) GEMM(name, format, 24)
GEMMS(mxfp4, MXFP4)
GEMMS(q8_0, Q8_0)
GEMMS(f16, F16)
