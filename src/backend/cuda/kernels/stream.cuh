// Tiles of weights, streamed past a few rows of activations.
//
// A block takes a run of consecutive tiles, in rounds of at most WARPS tiles. The units of a round, tile after tile, are cut
// into WARPS equal runs, one a warp, so that all warps end together however few tiles there are; a warp's run touches at
// most two tiles. Each warp copies its own units into a small ring in shared memory, far ahead of the products and, since
// weights depend on nobody, before the kernel ahead has ended. At the end of a round the warps' sums meet in shared memory.
#pragma once
#include "common.cuh"

constexpr int WARPS = 16;
constexpr int THREADS = WARPS * 32;
// Columns (rows of the batch) at most.
constexpr int COLUMNS = 8;
// Units of a slot of the ring: one copy, one wait.
constexpr int SLOT_UNITS = 4;

enum Format { MXFP4 = 0, Q8_0 = 1, F16 = 2 };
template <int F> constexpr int UNIT_INPUTS = F == MXFP4 ? 64 : F == Q8_0 ? 32 : 16;

__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
    uint32_t done;
#if __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#else
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
#endif
    return done;
}

// Divides numbers below 2^21 by the same one, in a few cycles: (n + 1/2) / d is further from an integer than the product's rounding.
struct Divider {
    float inverse;
    int by;
    __device__ explicit Divider(int by) : inverse(1.0f / (float)by), by(by) {}
    __device__ __forceinline__ int operator()(int n) const { return __float2int_rz(((float)n + 0.5f) * inverse); }
};

// --- Products ----------------------------------------------------------------------------------------------------
// MXFP4 sums come out 2^14 times too small (common.cuh): the warps' sums are corrected when they are put down.
template <int F> constexpr float CORRECTION = F == MXFP4 ? 16384.0f : 1.0f;

// acc += scale * (A b) for one unit in shared memory; `b` points to this lane's column of activations, at input 8t of the unit.
template <int F> __device__ __forceinline__ void unit_product(float (&acc)[4], const uint8_t *unit, const half *b) {
    const float zero[4] = {0, 0, 0, 0};
    int lane = threadIdx.x % 32;
    uint4 w = ((const uint4 *)unit)[lane];
    uint32_t s = ((const uint32_t *)(unit + 512))[lane / 4];
    if constexpr (F == MXFP4) {
        // 2^(e - 127) is e as the exponent of an f32.
        constexpr uint32_t EXPONENT = 0x7f800000;
        float scale[4] = {__uint_as_float((s << 23) & EXPONENT), __uint_as_float((s << 15) & EXPONENT), __uint_as_float((s << 7) & EXPONENT),
                          __uint_as_float((s >> 1) & EXPONENT)};
#pragma unroll
        for (int part = 0; part < 2; part++) {
            uint4 x = *(const uint4 *)(b + part * 32);
            uint32_t lo[4], hi[4];
            mxfp4_pairs(part ? w.z : w.x, lo);
            mxfp4_pairs(part ? w.w : w.y, hi);
            uint32_t a0[4] = {lo[0], hi[0], lo[1], hi[1]}, a1[4] = {lo[2], hi[2], lo[3], hi[3]};
            float c[4];
            mma(c, a0, x.x, x.y, zero);
            mma(c, a1, x.z, x.w, c);
            acc[0] += scale[2 * part] * c[0], acc[1] += scale[2 * part] * c[1];
            acc[2] += scale[2 * part + 1] * c[2], acc[3] += scale[2 * part + 1] * c[3];
        }
    } else {
        float2 d = __half22float2(bits_h2(s));
        float c[4];
        if constexpr (F == Q8_0) {
            uint4 x = *(const uint4 *)b;
            uint32_t lo[4], hi[4];
            q8_pairs(w.x, lo[0], lo[1]), q8_pairs(w.y, lo[2], lo[3]);
            q8_pairs(w.z, hi[0], hi[1]), q8_pairs(w.w, hi[2], hi[3]);
            uint32_t a0[4] = {lo[0], hi[0], lo[1], hi[1]}, a1[4] = {lo[2], hi[2], lo[3], hi[3]};
            mma(c, a0, x.x, x.y, zero);
            mma(c, a1, x.z, x.w, c);
        } else {
            uint2 x = *(const uint2 *)b;
            uint32_t a[4] = {w.x, w.z, w.y, w.w};
            mma(c, a, x.x, x.y, zero);
        }
        acc[0] += d.x * c[0], acc[1] += d.x * c[1], acc[2] += d.y * c[2], acc[3] += d.y * c[3];
    }
}
// Where unit `u`'s inputs begin in a lane's column.
template <int F> __device__ __forceinline__ int unit_input(int u) {
    return F == F16 ? u / 2 * 32 + u % 2 * 4 : u * UNIT_INPUTS<F>;
}

// --- A block's work ----------------------------------------------------------------------------------------------
// The tiles `from` to `to` of a block, in rounds. Tile i has `segments` segments of `units` units each, from segment i * segments on.
struct Work {
    int from, to, units, segments;
    Divider by_units, by_segments;
    __device__ Work(int from, int to, int units, int segments) : from(from), to(to), units(units), segments(segments), by_units(units), by_segments(segments) {}
    __device__ int tile_units() const { return units * segments; }
};
// A round: where warp `w`'s run begins; it ends where the next one's begins.
struct Round {
    int tiles, units;
    __device__ Round(const Work &w, int first) : tiles(min(w.to - first, WARPS)), units(tiles * w.tile_units()) {}
    __device__ int begin(int w) const { return w * units / WARPS; }
};

// One warp's walk through its runs, piece by piece: units of one segment.
struct Pieces {
    int first = 0;             // first tile of the round
    int next = 0, last = 0;    // what is left of the round's run
    int segment = 0, unit = 0, count = 0; // the piece: its segment, first unit and length
    __device__ void enter(const Work &w, int tile) {
        first = tile;
        Round round(w, first);
        next = round.begin(threadIdx.x / 32), last = round.begin(threadIdx.x / 32 + 1);
    }
    // Goes to the round's next piece; false at its end.
    __device__ bool piece(const Work &w) {
        if (next >= last) return false;
        segment = w.by_units(next);
        unit = next - segment * w.units;
        count = min(w.units - unit, last - next);
        next += count;
        segment += first * w.segments;
        return true;
    }
};

// One warp's ring. `Base(s)` is where the units of segment `s` begin.
template <class Base> struct Stream {
    Base base;
    const Work &work;
    Pieces ahead; // lane 0's
    const uint8_t *from = nullptr;
    int left = 0;
    uint32_t slots, barriers;
    const uint8_t *memory;
    int stages, fill_stage = 0, use_stage = 0;
    uint32_t parity = 0;
    static constexpr int SLOT = SLOT_UNITS * UNIT_BYTES;

    __device__ Stream(uint8_t *shared, int stages, const Work &work, Base base) : base(base), work(work), stages(stages) {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        memory = shared + warp * stages * SLOT;
        slots = shared_address(memory);
        barriers = shared_address(shared + WARPS * stages * SLOT) + warp * stages * 8;
        if (lane < stages) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barriers + lane * 8) : "memory");
#if __CUDA_ARCH__ >= 900
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
        __syncwarp();
        ahead.first = work.from; // also of a block without work, which copies nothing
        if (work.from < work.to) ahead.enter(work, work.from);
        for (int i = 0; i < stages; i++) fill();
    }
    // Copies the next units into the next slot, if there are any.
    __device__ void fill() {
#if __CUDA_ARCH__ >= 900
        if (threadIdx.x % 32) return;
#endif
        while (left == 0) {
            if (ahead.piece(work)) {
                left = ahead.count;
                from = base(ahead.segment) + (int64_t)ahead.unit * UNIT_BYTES;
            } else {
                if (ahead.first + WARPS >= work.to) return;
                ahead.enter(work, ahead.first + WARPS);
            }
        }
        int n = min(left, SLOT_UNITS), bytes = n * UNIT_BYTES;
        uint32_t slot = slots + fill_stage * SLOT, barrier = barriers + fill_stage * 8;
#if __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [%0], %1; }" ::"r"(barrier), "r"(bytes) : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(slot), "l"(from), "r"(bytes), "r"(barrier) : "memory");
#else
        int lane = threadIdx.x % 32;
        for (int at = lane * 16; at < bytes; at += 512)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(slot + at), "l"(from + at) : "memory");
        asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(barrier) : "memory");
        __syncwarp();
        if (lane == 0) asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(barrier) : "memory");
#endif
        from += bytes, left -= n;
        if (++fill_stage == stages) fill_stage = 0;
    }
    // The oldest slot, once its units are there.
    __device__ const uint8_t *wait() {
        while (!barrier_test(barriers + use_stage * 8, parity)) {}
        return memory + use_stage * SLOT;
    }
    // Gives that slot back and fills it again.
    __device__ void release() {
        if (++use_stage == stages) use_stage = 0, parity ^= 1;
        __syncwarp();
        fill();
    }
};
// Bytes of all rings of a block.
__host__ __device__ constexpr int ring_bytes(int stages) { return WARPS * stages * (SLOT_UNITS * UNIT_BYTES + 8); }

// The warps' sums of a round: two buffers, so that one meeting a round suffices.
struct Sums {
    float *buffer; // [2, WARPS, 2 tiles of the run, columns, 16]
    int columns;
    int turn = 0;
    static __host__ __device__ constexpr int floats(int columns) { return 2 * WARPS * 2 * columns * 16; }
    __device__ Sums(float *buffer, int columns) : buffer(buffer), columns(columns) {}

    __device__ float *place(int warp, int i, int c) const { return buffer + (((turn * WARPS + warp) * 2 + i) * columns + c) * 16; }
    // Puts down this warp's sums of its run's `i`-th tile.
    template <int F> __device__ void put(const float (&acc)[4], int i) {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4 * 2;
        float *to = place(warp, i, c);
        if (c < columns) to[g] = acc[0] * CORRECTION<F>, to[g + 8] = acc[2] * CORRECTION<F>;
        if (c + 1 < columns) to[16 + g] = acc[1] * CORRECTION<F>, to[16 + g + 8] = acc[3] * CORRECTION<F>;
    }
    // Row `i`, column `c` of the round's tile `tile`: the sum over the warps whose runs touch it, in their order.
    __device__ float total(const Round &round, const Divider &by_round, int tile_units, int tile, int i, int c) const {
        int low = tile * tile_units, high = low + tile_units;
        float sum = 0;
        for (int w = by_round(low * WARPS); w < WARPS; w++) {
            int begin = round.begin(w);
            if (begin >= high) break;
            if (round.begin(w + 1) > max(low, begin)) sum += place(w, begin < low, c)[i];
        }
        return sum;
    }
};

// Result i of a round in which each tile gives `OUTPUTS` of them a column: row by row, tile by tile, column by column.
template <int OUTPUTS> struct Place {
    int tile, row, column;
    __device__ Place(const Divider &by_tiles, int i) {
        int rest = i / OUTPUTS;
        row = i % OUTPUTS, column = by_tiles(rest), tile = rest - column * by_tiles.by;
    }
};

// All of a block's tiles. `Column(s)` is this lane's column of activations for segment s, at input 8t. `Store` uses the sums: thread
// by thread, the round.tiles * OUTPUTS * columns results of a round; `load(tile, row, column)` fetches what a result needs besides,
// before the sums are there, `store(total)` takes it to memory, where total(k) is the sum of row `row + k`.
template <int F, class Base, class Column, class Store>
__device__ __forceinline__ void run_tiles(Stream<Base> &stream, Sums &sums, const Work &work, Column column, Store store) {
    for (int first = work.from; first < work.to; first += WARPS) {
        Round round(work, first);
        Divider by_tiles(round.tiles), by_round(round.units);
        int results = round.tiles * Store::OUTPUTS * sums.columns;
        Place<Store::OUTPUTS> at(by_tiles, threadIdx.x);
        if (threadIdx.x < results) store.load(first + at.tile, at.row, at.column);
        Pieces pieces;
        pieces.enter(work, first);
        int tile = -1, put = 0;
        float acc[4] = {0, 0, 0, 0};
        while (pieces.piece(work)) {
            int own = work.segments == 1 ? pieces.segment : work.by_segments(pieces.segment);
            if (own != tile) {
                if (tile >= 0) sums.put<F>(acc, put++);
                tile = own;
                acc[0] = acc[1] = acc[2] = acc[3] = 0;
            }
            const half *b = column(pieces.segment);
            int u = pieces.unit, left = pieces.count;
            for (; left >= SLOT_UNITS; left -= SLOT_UNITS, u += SLOT_UNITS) {
                const uint8_t *slot = stream.wait();
#pragma unroll
                for (int i = 0; i < SLOT_UNITS; i++) unit_product<F>(acc, slot + i * UNIT_BYTES, b + unit_input<F>(u + i));
                stream.release();
            }
            if (left > 0) {
                const uint8_t *slot = stream.wait();
                if (left & 2) {
#pragma unroll
                    for (int i = 0; i < 2; i++) unit_product<F>(acc, slot + i * UNIT_BYTES, b + unit_input<F>(u + i));
                }
                if (left & 1) unit_product<F>(acc, slot + (left & 2) * UNIT_BYTES, b + unit_input<F>(u + (left & 2)));
                stream.release();
            }
        }
        if (tile >= 0) sums.put<F>(acc, put);
        __syncthreads();
        for (int i = threadIdx.x; i < results; i += THREADS) {
            Place<Store::OUTPUTS> p(by_tiles, i);
            if (i >= THREADS) store.load(first + p.tile, p.row, p.column);
            store.store([&](int k) { return sums.total(round, by_round, work.tile_units(), p.tile, p.row + k, p.column); });
        }
        sums.turn ^= 1;
    }
}

// The block's share of `tiles` tiles of `segments` segments of `units` units.
__device__ __forceinline__ Work block_work(int tiles, int units, int segments) {
    uint32_t n = tiles, b = blockIdx.x, blocks = gridDim.x;
    return Work(n * b / blocks, n * (b + 1) / blocks, units, segments);
}

// Halves between the columns of activations in shared memory: lanes of a warp read 16 bytes each of up to 8 columns, without bank conflicts.
__host__ __device__ constexpr int column_stride(int inputs) { return (inputs + 63) / 64 * 64 + 32; }

// Sum over the block; `scratch` has WARPS floats, free again after the next barrier.
__device__ __forceinline__ float block_sum(float v, float *scratch) {
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += scratch[w];
    return sum;
}

// columns[c] = f16(rmsnorm(x[c]) * weight) for `rows` rows of `hidden`, zero beyond up to `padded`. Ends with a barrier.
__device__ inline void norm_columns(half *columns, const float *x, const float *weight, int rows, int hidden, int padded, float eps, float *scratch) {
    constexpr int MOST = 2; // float4 a thread that stay in registers
    int stride = column_stride(padded), thread = threadIdx.x;
    float4 w[MOST];
    bool held = hidden <= MOST * 4 * THREADS;
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int at = (thread + i * THREADS) * 4;
        if (at < hidden) w[i] = *(const float4 *)(weight + at);
    }
    wait_for_previous();
    let_next_start();
    for (int c = 0; c < rows; c++) {
        const float *row = x + (int64_t)c * hidden;
        half *to = columns + c * stride;
        float4 v[MOST];
        float squares = 0;
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int at = (thread + i * THREADS) * 4;
            if (at < hidden) {
                v[i] = *(const float4 *)(row + at);
                squares += v[i].x * v[i].x + v[i].y * v[i].y + v[i].z * v[i].z + v[i].w * v[i].w;
            }
        }
        for (int at = (thread + MOST * THREADS) * 4; at < hidden; at += THREADS * 4) {
            float4 u = *(const float4 *)(row + at);
            squares += u.x * u.x + u.y * u.y + u.z * u.z + u.w * u.w;
        }
        float scale = rsqrtf(block_sum(squares, scratch + (c & 1) * WARPS) / hidden + eps);
        auto put = [&](int at, float4 u, float4 w) {
            half2 a = __floats2half2_rn(u.x * scale * w.x, u.y * scale * w.y), b = __floats2half2_rn(u.z * scale * w.z, u.w * scale * w.w);
            *(uint2 *)(to + at) = make_uint2(h2_bits(a), h2_bits(b));
        };
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int at = (thread + i * THREADS) * 4;
            if (at < hidden) put(at, v[i], w[i]);
        }
        if (!held)
            for (int at = (thread + MOST * THREADS) * 4; at < hidden; at += THREADS * 4) put(at, *(const float4 *)(row + at), *(const float4 *)(weight + at));
        for (int at = hidden + thread; at < padded; at += THREADS) to[at] = __float2half_rn(0);
    }
    __syncthreads();
}
