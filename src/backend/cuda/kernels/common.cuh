// What every kernel shares: the batch as the device sees it, tiles of weights, and the tensor-core product.
//
// Weights lie in tiles of 16 outputs ("rows"), each a run of units along the inputs, in the order in which the
// lanes of mma.m16n8k16 want them, so that a warp reads 512 consecutive bytes a load. Lane = 4 g + t holds rows g and
// g + 8 and, of each 32 inputs, the eight from 8 t on. A unit is 512 bytes of values, then 32 bytes of scales: 544
// bytes, as many as the file's own blocks. See weights.rs, which describes the same layout and makes it.
#pragma once
#include <cuda_fp16.h>
#include <stdint.h>

// Positions in a block of the paged KV cache, and in a step of a ring.
constexpr int KV_BLOCK = 32;
constexpr int HEAD_DIM = 64;
// Bytes of a unit: 64 inputs of MXFP4, 32 of Q8_0, 16 of F16, each of 16 rows, and the scales.
constexpr int UNIT_BYTES = 544;

// One new token of the batch. The same in batch.rs.
struct Row {
    int32_t token;
    int32_t position;
    int32_t segment;
    // 1: its keys and values are appended to full layers (0: they are kept there already).
    int32_t append;
};

// New tokens of one sequence. The same in batch.rs.
struct Segment {
    int32_t start;       // position of the first
    int32_t len;         // how many
    int32_t first_row;   // row of the first
    int32_t slot;        // ring of the sliding layers
    int32_t window_from; // first position that sliding layers see
    int32_t blocks;      // where its block table begins in the batch's table
    int32_t pad[2];
};

// Where one layer keeps keys and values, f16. A step is 32 positions of one KV head: keys [32, 64], then values
// [32, 64]. Full layers: step (block * kv_heads + head). Sliding layers: step ((slot * ring_stride + p / 32 % ring_steps) * kv_heads + head).
struct Cache {
    half *base;          // of this layer
    const int32_t *table; // block tables of all segments; full layers only
    int32_t kv_heads;
    int32_t ring_steps;  // 0: a full layer
    int32_t ring_stride; // steps between the rings of two slots
};

constexpr int STEP_HALVES = 2 * KV_BLOCK * HEAD_DIM;

// The step that holds `position` of segment `s`, head `head`.
__device__ __forceinline__ half *cache_step(const Cache &cache, const Segment &s, int position, int head) {
    int step = position / KV_BLOCK;
    int64_t at = cache.ring_steps ? (int64_t)s.slot * cache.ring_stride + step % cache.ring_steps
                                  : (int64_t)__ldg(cache.table + s.blocks + step);
    return cache.base + (at * cache.kv_heads + head) * STEP_HALVES;
}

// --- Programmatic dependent launch -------------------------------------------------------------------------------
// Each kernel reads what earlier kernels wrote only after `wait_for_previous`, and lets the next one start by
// `let_next_start`, which comes after the wait: so at most two kernels are under way, and what the kernel before the
// previous one wrote may be read at once.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// --- Tensor cores ------------------------------------------------------------------------------------------------
// d = a b + c, 16x16 by 16x8, f16 products summed in f32. b[0] are inputs (2t, 2t+1) of column g, b[1] (2t+8, 2t+9);
// since rows and columns use the same assignment, any order of the inputs will do, if both have it.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

__device__ __forceinline__ uint32_t h2_bits(half2 h) { return *reinterpret_cast<uint32_t *>(&h); }
__device__ __forceinline__ half2 bits_h2(uint32_t u) { return *reinterpret_cast<half2 *>(&u); }

// --- MXFP4 -------------------------------------------------------------------------------------------------------
// A unit is 64 inputs: the lane's uint4 is row g of inputs 0..31, row g+8 of them, row g of inputs 32..63, row g+8 of
// them; a word is 8 values, two in each f16 pair j = 0..3 (inputs 8t+2j in the low half, 8t+2j+1 in the high half). Of each half, pair
// 0 has its sign in bit 15 and the other three bits of its code in 11..9, pair 1 in 7 and 3..1, pair 2 in 8 and 14..12, pair 3 in 0 and
// 6..4: nine instructions take all of it apart. With the sign in bit 15 and the others in 11..9 the bits are, as f16, the
// value times 2^-14, subnormals included. Scales: for each g four bytes e, of (inputs 0..31, row g), (0..31, g+8), (32..63, g), (32..63, g+8).
__device__ __forceinline__ void mxfp4_pairs(uint32_t w, uint32_t (&h)[4]) {
    h[0] = w & 0x8E008E00u;
    h[1] = (w << 8) & 0x8E008E00u;
    uint32_t rest = ((w >> 3) & 0x0E0E0E0Eu) | ((w << 7) & 0x80808080u);
    h[2] = rest & 0x8E008E00u;
    h[3] = (rest << 8) & 0x8E008E00u;
}
// 2^(e - 127 + 14): the block's scale, for products of the above. Exponents over 240 are refused at load.
__device__ __forceinline__ float mxfp4_scale(uint32_t e) { return __uint_as_float((e + 14) << 23); }

// --- Q8_0 --------------------------------------------------------------------------------------------------------
// A unit is 32 inputs: the lane's uint4 is row g of inputs 8t..8t+3 and 8t+4..8t+7, then row g+8 of them, each byte
// q + 128. Scales: for each g two f16, of rows g and g+8.
__device__ __forceinline__ void q8_pairs(uint32_t w, uint32_t &h0, uint32_t &h1) {
    const half2 bias = __float2half2_rn(-1152.0f); // 1024 + 128
    h0 = h2_bits(__hadd2(bits_h2(__byte_perm(w, 0x64646464u, 0x4140)), bias));
    h1 = h2_bits(__hadd2(bits_h2(__byte_perm(w, 0x64646464u, 0x4342)), bias));
}

// --- F16 ---------------------------------------------------------------------------------------------------------
// A unit is 16 inputs, half of 32: the lane's uint4 is row g of inputs 8t+4u..8t+4u+3 (u: even or odd unit), then row g+8
// of them. Scales: for each g two f16, of rows g and g+8, as Q8_0 (1.0 where the file has F16).

// --- Reductions --------------------------------------------------------------------------------------------------
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int m = 16; m; m >>= 1) x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}

// A matrix in tiles. The same in tiles.rs.
struct Tiles {
    const uint8_t *data;
    int32_t format;  // 0 MXFP4, 1 Q8_0, 2 F16
    int32_t tiles;   // of one matrix
    int32_t units;   // of one tile
    int32_t outputs; // of one matrix, without those that fill the last tile
};
