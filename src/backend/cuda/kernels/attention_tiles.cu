// Attention of many rows by mma.sync, on every GPU. A warp has 32 queries, so that keys and values read from shared
// memory serve two products.
#include "attention_tiles.cuh"

namespace {
struct Mma {
    static constexpr int WARPS = 4, M = 2, STAGES = 3, SHARING = 1;
    static constexpr bool QUERIES_IN_REGISTERS = true;

    static __device__ __forceinline__ void ready() {}
    static __device__ __forceinline__ void done(Tile<M> &) {}
    template <bool SLIDING> static __device__ __forceinline__ void add(Tile<M> &tile, uint32_t, uint32_t stage, int position, bool masked) {
        int row = threadIdx.x % 8, sub = threadIdx.x % 32 / 8;
        float s[M][8][4] = {};
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                uint32_t keys[4];
                load_matrices(keys, stage + chunk_at(n * 16 + (sub >> 1) * 8 + row, k * 2 + (sub & 1)));
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(s[m][2 * n], tile.q[m][k], keys[0], keys[1], s[m][2 * n]);
                    mma(s[m][2 * n + 1], tile.q[m][k], keys[2], keys[3], s[m][2 * n + 1]);
                }
            }
        float keep[M][2];
        if (softmax<SLIDING>(tile, s, keep, 0, position, masked)) rescale(tile, keep);
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                uint32_t v[4];
                load_transposed(v, stage + KEYS * HEAD_DIM * 2 + chunk_at(k * 16 + (sub & 1) * 8 + row, n * 2 + (sub >> 1)));
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma(tile.o[m][2 * n], tile.p[m][k], v[0], v[1], tile.o[m][2 * n]);
                    mma(tile.o[m][2 * n + 1], tile.p[m][k], v[2], v[3], tile.o[m][2 * n + 1]);
                }
            }
    }
};
} // namespace

extern "C" __global__ void __launch_bounds__(Mma::WARPS * 32, 2) attention_tiles(__grid_constant__ const AttentionArgs a) {
    extern __shared__ __align__(1024) char shared[];
    run_tiles<Mma>(a, shared);
}
