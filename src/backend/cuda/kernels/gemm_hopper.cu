// The product for many activations on Hopper: wgmma with decoded weights in registers.
//
// A block computes 256 outputs by up to 160 activations. One warpgroup copies, through stages of 64 inputs: weights by
// the bulk copy engine, activations, gathered by row, by cp.async into wgmma's 128-byte swizzle. Two warpgroups each
// have 128 outputs: every warp decodes its own tiles, two of them, while the tensor cores work on the fragments before.
#include "gemm.cuh"

#if __CUDA_ARCH_FEAT_SM90_ALL
template <int FORMAT> constexpr int STAGES = FORMAT == F16 ? 4 : 6;
constexpr int TALL = 2;       // times 64 outputs of a warpgroup
constexpr int BLOCK_TILES = 8 * TALL;
constexpr int MOST = 160;     // activations
constexpr int LAG = 2;        // stages of activations under way before the first is waited for

// --- Barriers in shared memory -----------------------------------------------------------------------------------
__device__ __forceinline__ void barrier_init(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
    asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1; @!p bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}
__device__ __forceinline__ void copy_bulk(uint32_t to, const void *from, int bytes, uint32_t barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

// --- wgmma -------------------------------------------------------------------------------------------------------
// d += a b for 64 outputs of the warpgroup, 16 inputs, N activations. Registers are in use until `wait_products`.
template <int N> __device__ __forceinline__ void wgmma(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b);

#define W0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define W1 "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define W2 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define W3 "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define W4A "%64,%65,%66,%67,%68,%69,%70,%71"
#define W4B "%72,%73,%74,%75,%76,%77,%78,%79"
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i) D4(i), D4(i + 4)
#define D16(i) D8(i), D8(i + 8)
#define WGMMA(n, registers, a0, a1, a2, a3, desc, ...)                                                                   \
    template <> __device__ __forceinline__ void wgmma<n>(float (&d)[n / 2], const uint32_t (&a)[4], uint64_t b) {        \
        asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" registers "}, {%" #a0 ",%" #a1 ",%" #a2  \
                     ",%" #a3 "}, %" #desc ", 1, 1, 1, 0;"                                                               \
                     : __VA_ARGS__                                                                                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                              \
    }
WGMMA(64, W0 "," W1, 32, 33, 34, 35, 36, D16(0), D16(16))
WGMMA(96, W0 "," W1 "," W2, 48, 49, 50, 51, 52, D16(0), D16(16), D16(32))
WGMMA(128, W0 "," W1 "," W2 "," W3, 64, 65, 66, 67, 68, D16(0), D16(16), D16(32), D16(48))
WGMMA(144, W0 "," W1 "," W2 "," W3 "," W4A, 72, 73, 74, 75, 76, D16(0), D16(16), D16(32), D16(48), D8(64))
WGMMA(160, W0 "," W1 "," W2 "," W3 "," W4A "," W4B, 80, 81, 82, 83, 84, D16(0), D16(16), D16(32), D16(48), D16(64))

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// --- Turns of the two warpgroups ---------------------------------------------------------------------------------
__device__ __forceinline__ void await_turn(int group) { asm volatile("bar.sync %0, 256;" ::"r"(2 + group) : "memory"); }
__device__ __forceinline__ void pass_turn(int group) { asm volatile("bar.arrive %0, 256;" ::"r"(2 + group) : "memory"); }

// --- A block -----------------------------------------------------------------------------------------------------
// Its shared memory: barriers, then columns, then from 2,048 bytes on the stages' activations and the stages' weights.
template <int FORMAT> struct Stages {
    uint32_t full, empty; // barriers, 8 bytes each
    uint32_t activations, weights;
    int activation_bytes;
    static constexpr int WEIGHT_BYTES = BLOCK_TILES * SLICE_BYTES<FORMAT>;
    int steps;
};

template <int FORMAT>
__device__ __forceinline__ void produce(const GemmArgs &a, const Work &work, const Stages<FORMAT> &s, uint8_t *shared, int n, const Columns<MOST> &columns) {
    const int thread = threadIdx.x - 256, chunk = thread & 7, r = thread >> 3, first = blockIdx.x * BLOCK_TILES;
    const int tiles = min(BLOCK_TILES, a.tiles - first);
    const uint8_t *weights = a.weights + ((int64_t)work.expert * a.tiles + first + min(thread, tiles - 1)) * a.units * UNIT_BYTES;
    const uint32_t to = s.activations + r * 128 + ((chunk ^ (r & 7)) << 4);
    const half *input = a.input + chunk * 8;
    for (int step = 0; step < s.steps + LAG; step++) {
        const int stage = step % STAGES<FORMAT>;
        if (step < s.steps) {
            if (step >= STAGES<FORMAT>) barrier_wait(s.empty + stage * 8, (step / STAGES<FORMAT> - 1) & 1);
            const int bytes = min(UNITS<FORMAT>, a.units - step * UNITS<FORMAT>) * UNIT_BYTES;
            const uint32_t full = s.full + stage * 8;
            if (thread == 0) barrier_expect(full, tiles * bytes);
            if (thread < tiles && bytes < SLICE_BYTES<FORMAT>) {
                // The inputs end here: what the stage held before might not be numbers.
                uint8_t *rest = shared + (s.weights - s.full) + stage * s.WEIGHT_BYTES + thread * SLICE_BYTES<FORMAT>;
                for (int i = bytes; i < SLICE_BYTES<FORMAT>; i += 16) *reinterpret_cast<uint4 *>(rest + i) = make_uint4(0, 0, 0, 0);
            }
            if (thread < tiles)
                copy_bulk(s.weights + stage * s.WEIGHT_BYTES + thread * SLICE_BYTES<FORMAT>, weights + (int64_t)step * SLICE_BYTES<FORMAT>, bytes, full);
#pragma unroll
            for (int i = 0; i < MOST / 16; i++) {
                if (i * 16 >= n) break;
                const half *from = input + (int64_t)columns.row[r + i * 16] * a.stride + step * 64;
                copy16(to + stage * s.activation_bytes + i * 16 * 128, from, r + i * 16 < work.count);
            }
        }
        commit_copies();
        if (step >= LAG) {
            wait_copies<LAG>();
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            barrier_arrive(s.full + (step - LAG) % STAGES<FORMAT> * 8);
        }
    }
}

template <int FORMAT, int N>
__device__ __forceinline__ void consume(const GemmArgs &a, const Work &work, const Stages<FORMAT> &s, uint8_t *shared, const Columns<MOST> &columns) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    // Warp w of a warpgroup holds rows 16w.. of each 64: its tiles are w and 4 + w of the warpgroup's.
    const int own = (warp >> 2) * TALL * 4 + (warp & 3), tile = blockIdx.x * BLOCK_TILES + own;
    const uint8_t *const weights = shared + (s.weights - shared_address(shared)) + own * SLICE_BYTES<FORMAT>;
    const uint8_t *exponents = a.exponents + (int64_t)work.expert * a.tiles * 16;
    RowScale scales[TALL];
    float d[TALL][N / 2];
#pragma unroll
    for (int i = 0; i < TALL; i++) {
        scales[i] = row_scale(exponents + min(tile + 4 * i, a.tiles - 1) * 16, lane >> 2);
#pragma unroll
        for (int n = 0; n < N / 2; n++) d[i][n] = 0.0f;
    }

    // The warpgroups take turns: one decodes while the tensor cores are the other's.
    const int group = warp >> 2;
    if (group) pass_turn(0);
    for (int step = 0; step < s.steps; step++) {
        const int stage = step % STAGES<FORMAT>;
        barrier_wait(s.full + stage * 8, step / STAGES<FORMAT> & 1);
        const uint8_t *w = weights + stage * s.WEIGHT_BYTES;
        uint32_t frag[2][TALL][2][4];
#pragma unroll
        for (int half_ = 0; half_ < 2; half_++) {
#pragma unroll
            for (int i = 0; i < TALL; i++) decode<FORMAT>(frag[half_][i], w + i * 4 * SLICE_BYTES<FORMAT>, half_, lane, scales[i]);
        }
        // 128-byte swizzle, 1,024 bytes from eight rows to the next.
        const uint64_t b = 1ull << 62 | 64ull << 32 | 1ull << 16 | (s.activations + stage * N * 128) >> 4;
        await_turn(group);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
            for (int i = 0; i < TALL; i++) wgmma<N>(d[i], frag[k / 2][i][k % 2], b + k * 2);
        }
        products_commit();
        if (!group || step + 1 < s.steps) pass_turn(!group);
        wait_products<0>();
        if (!lane) barrier_arrive(s.empty + stage * 8);
    }
    asm volatile("bar.sync 1, 256;" ::: "memory");

    float4 *sums = reinterpret_cast<float4 *>(shared + 2048) + warp * N / 8 * 32 + lane;
#pragma unroll
    for (int i = 0; i < TALL; i++) {
        float low = power(scales[i].low), high = power(scales[i].high);
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            sums[n * 32] = make_float4(d[i][n * 4] * low, d[i][n * 4 + 1] * low, d[i][n * 4 + 2] * high, d[i][n * 4 + 3] * high);
        if (tile + 4 * i >= a.tiles) break;
#pragma unroll 1
        for (int n = 0; n * 8 < work.count; n++) {
            float4 v = sums[n * 32];
            float sum[4] = {v.x, v.y, v.z, v.w};
            store(a, columns, work, tile + 4 * i, n * 8 + (lane & 3) * 2, sum, lane);
        }
    }
}

template <int FORMAT> __device__ __forceinline__ void gemm_wide(const GemmArgs &a) {
    extern __shared__ __align__(1024) uint8_t shared[];
    Columns<MOST> &columns = *reinterpret_cast<Columns<MOST> *>(shared + 128);
    Stages<FORMAT> s;
    s.full = shared_address(shared), s.empty = s.full + STAGES<FORMAT> * 8;
    if (!threadIdx.x) {
        for (int i = 0; i < STAGES<FORMAT>; i++) {
            barrier_init(s.full + i * 8, 128 + 1);
            barrier_init(s.empty + i * 8, 8);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    wait_for_previous();
    let_next_start();
    const Work work = my_work(a, blockIdx.y);
    if (!work.count) return;
    fill_columns(columns, a, work);
    __syncthreads();
    const int n = work.count <= 64 ? 64 : work.count <= 96 ? 96 : work.count <= 128 ? 128 : work.count <= 144 ? 144 : 160;
    s.activations = s.full + 2048, s.activation_bytes = n * 128;
    s.weights = s.activations + STAGES<FORMAT> * n * 128;
    s.steps = (a.units + UNITS<FORMAT> - 1) / UNITS<FORMAT>;
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        produce<FORMAT>(a, work, s, shared, n, columns);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        if (n == 64) consume<FORMAT, 64>(a, work, s, shared, columns);
        else if (n == 96) consume<FORMAT, 96>(a, work, s, shared, columns);
        else if (n == 128) consume<FORMAT, 128>(a, work, s, shared, columns);
        else if (n == 144) consume<FORMAT, 144>(a, work, s, shared, columns);
        else consume<FORMAT, 160>(a, work, s, shared, columns);
    }
}
#else
template <int FORMAT> __device__ __forceinline__ void gemm_wide(const GemmArgs &) { __trap(); }
#endif

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wide_mxfp4(__grid_constant__ const GemmArgs a) { gemm_wide<MXFP4>(a); }
extern "C" __global__ void __launch_bounds__(384, 1) gemm_wide_q8_0(__grid_constant__ const GemmArgs a) { gemm_wide<Q8_0>(a); }
extern "C" __global__ void __launch_bounds__(384, 1) gemm_wide_f16(__grid_constant__ const GemmArgs a) { gemm_wide<F16>(a); }
