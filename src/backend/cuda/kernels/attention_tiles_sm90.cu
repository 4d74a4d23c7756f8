// Attention of many rows by Hopper's wgmma: a group of four warps has 64 queries, which, like keys and values, it reads
// from shared memory. Two blocks a multiprocessor: softmax of some groups beside products of the others.
#include "attention_tiles.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
namespace {
// A tile of 64 rows of 128 bytes, chunks swapped as by chunk_at; 8 rows lie 1024 bytes apart. Inputs 16 k and on: + 2 k
// where rows are outputs, + 128 k where they are inputs.
__device__ __forceinline__ uint64_t describe(uint32_t at) {
    return (1ull << 62) | (64ull << 32) | (1ull << 16) | (at & 0x3ffff) >> 4;
}
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// Products are under way from where they are asked for until they are waited for. These keep the compiler from using sums
// before, and the registers of what multiplies for other things.
__device__ __forceinline__ void hold(float (&d)[8][4]) {
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) asm volatile("" : "+f"(d[n][j])::"memory");
}
__device__ __forceinline__ void hold(uint32_t (&p)[4][4]) {
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
        for (int j = 0; j < 4; j++) asm volatile("" : "+r"(p[k][j])::"memory");
}

#define PRODUCT                                                                                                                  \
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,"   \
    "%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
#define SUMS(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ALL_SUMS SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7)
// d (+)= a b, 64x16 by 16x64, both from shared memory, with rows of keys as b's columns.
template <bool ADD> __device__ __forceinline__ void score(float (&d)[8][4], uint64_t a, uint64_t b) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n" PRODUCT "%32, %33, p, 1, 1, 0, 0;}" : ALL_SUMS : "l"(a), "l"(b), "n"(ADD));
}
// d += a b, a from registers, b's rows those of values.
__device__ __forceinline__ void weigh(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(PRODUCT "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;" : ALL_SUMS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef PRODUCT
#undef SUMS
#undef ALL_SUMS

struct Wgmma {
    static constexpr int WARPS = 8, M = 1, STAGES = 4, SHARING = 4;
    // There is no room for them beside the rest.
    static constexpr bool QUERIES_IN_REGISTERS = false;

    // What was copied becomes visible to the tensor cores.
    static __device__ __forceinline__ void ready() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
    static __device__ __forceinline__ void done(Tile<M> &tile) {
        wait_for_products();
        hold(tile.o[0]);
    }
    // The values' products go on until the next tile's scores are there; so a stage is written again two tiles later.
    template <bool SLIDING>
    static __device__ __forceinline__ void add(Tile<M> &tile, uint32_t queries, uint32_t stage, int position, bool masked) {
        float s[M][8][4], keep[M][2];
        uint64_t mine = describe(queries + threadIdx.x / 128 * 64 * HEAD_DIM * 2), keys = describe(stage);
        uint64_t values = describe(stage + KEYS * HEAD_DIM * 2);
        hold(s[0]);
        begin_products();
        score<false>(s[0], mine, keys);
#pragma unroll
        for (int k = 1; k < 4; k++) score<true>(s[0], mine + k * 2, keys + k * 2);
        commit_products();
        wait_for_products();
        hold(s[0]);
        hold(tile.o[0]);
        hold(tile.p[0]);
        if (softmax<SLIDING>(tile, s, keep, 0, position, masked)) rescale(tile, keep);
        hold(tile.o[0]);
        hold(tile.p[0]);
        begin_products();
#pragma unroll
        for (int k = 0; k < 4; k++) weigh(tile.o[0], tile.p[0][k], values + k * 128);
        commit_products();
    }
};
} // namespace
#endif

extern "C" __global__ void __launch_bounds__(256, 2) attention_tiles_sm90(__grid_constant__ const AttentionArgs a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) char shared[];
    run_tiles<Wgmma>(a, shared);
#endif
}
