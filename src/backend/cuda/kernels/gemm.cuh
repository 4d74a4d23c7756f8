// Products of tiled weights with rows of activations, D = W h^T: what the kernels of gemm.cu and gemm_hopper.cu share.
//
// Weights are the A operand: they go from shared memory to registers as they lie in the file's blocks and are decoded
// there to f16, each lane its own part of the fragment. Activations are the B operand, f16 rows in *paired order*
// (see `paired`), so that a fragment of 32 inputs is a plain ldmatrix, or what wgmma reads.
//
// The blocks' scales go into the f16 weights, relative to the largest of the row: of MXFP4 that keeps every value
// exact whose block is within 2^13 of the row's largest scale, and is off by at most 2^-25 of that scale beyond;
// Q8_0 rounds d * q to 11 bits, as the activations are. The row's own power of two multiplies the sums, in f32.
#pragma once
#include "qkv.cuh"

enum Epilogue : int32_t { QKV, OUT_PROJ, LM_HEAD, GATE_UP, DOWN };

// Activations of one expert, or a run of rows: what one block column of the grid computes. The same in gemm.rs.
struct Work {
    int32_t expert;
    int32_t first; // sorted position, or row
    int32_t count;
    int32_t pad;
};

// The same in gemm.rs.
struct GemmArgs {
    const uint8_t *weights;   // tiles of all experts
    const uint8_t *exponents; // [experts, tiles, 16], see row_exponents
    const half *input;        // [rows, stride], paired order
    const int32_t *order;     // experts: sorted position -> row * used + slot
    const float *chosen;      // experts: [rows, used] weights
    const Work *work;         // experts: what to do, or null: rows 0..rows in runs of `tile`
    const int32_t *work_count;
    const float *bias;        // in natural order; of gate, up: [experts, width]
    const float *up_bias;
    void *out;
    QkvOut qkv;
    int32_t epilogue;
    int32_t rows;
    int32_t tile;             // most activations in a block
    int32_t tiles;            // of an expert
    int32_t units;            // of a tile
    int32_t stride;           // halves from one input row to the next, a multiple of 64
    int32_t outputs;          // of an expert, in natural order (gate_up: its width)
    int32_t out_stride;
    int32_t used;
    int32_t split;            // warps that share a tile's inputs: 1, 2, 4 or 8
    float limit;              // SwiGLU's clamp
    int32_t pad;
};

// --- Order of activations ----------------------------------------------------------------------------------------
// Where input i of each 32 lies. The eight inputs from 8t on are lane t's in both fragments of 16: the first holds its
// pairs 0 and 1, at k = 2t and 2t + 8, the second its pairs 2 and 3.
__host__ __device__ constexpr int paired(int i) {
    return (i & ~31) | (i >> 2 & 1) << 4 | (i >> 1 & 1) << 3 | (i >> 3 & 3) << 1 | (i & 1);
}

// --- Copies ------------------------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// 16 bytes to shared memory, or as many zeros.
__device__ __forceinline__ void copy16(uint32_t to, const void *from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void load_matrices(uint32_t (&b)[4], uint32_t from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3]) : "r"(from));
}

// --- Weights -----------------------------------------------------------------------------------------------------
enum Format : int { MXFP4, Q8_0, F16 };

// Units in 64 inputs of a tile, and their bytes.
template <int FORMAT> constexpr int UNITS = FORMAT == MXFP4 ? 1 : FORMAT == Q8_0 ? 2 : 4;
template <int FORMAT> constexpr int SLICE_BYTES = UNITS<FORMAT> * UNIT_BYTES;

// What a lane's two rows need to become relative to their largest scale: MXFP4 their exponents, else 2^-exponent in f16.
struct RowScale {
    uint32_t low, high; // exponents + 127 of rows g and g + 8
    uint32_t inverse;   // f16 pair
};

__device__ __forceinline__ RowScale row_scale(const uint8_t *exponents, int g) {
    RowScale s;
    s.low = __ldg(exponents + g);
    s.high = __ldg(exponents + g + 8);
    s.inverse = ((142 - s.low) << 10) | ((142 - s.high) << 26);
    return s;
}

// 2^(exponent - 127), down to a row of nothing.
__device__ __forceinline__ float power(uint32_t exponent) { return __uint_as_float(exponent ? exponent << 23 : 0x00400000u); }

// 2^(e - row + 14) twice in f16, for products of mxfp4_pairs; 0 where the block is too small to matter.
__device__ __forceinline__ half2 mxfp4_multiplier(uint32_t e, uint32_t row) {
    return bits_h2((uint32_t)max((int)(e - row) + 29, 0) * 0x04000400u);
}

// Fragments of inputs 32 half..32 half + 31 of a 64-input slice that begins at `p` in shared memory.
template <int FORMAT>
__device__ __forceinline__ void decode(uint32_t (&a)[2][4], const uint8_t *p, int half_, int lane, const RowScale &row) {
    int g = lane >> 2;
    if constexpr (FORMAT == MXFP4) {
        uint2 v = *reinterpret_cast<const uint2 *>(p + lane * 16 + half_ * 8);
        uint32_t e = *reinterpret_cast<const uint16_t *>(p + 512 + g * 4 + half_ * 2);
        half2 low = mxfp4_multiplier(e & 255, row.low), high = mxfp4_multiplier(e >> 8, row.high);
        uint32_t x[4], y[4];
        mxfp4_pairs(v.x, x);
        mxfp4_pairs(v.y, y);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            a[k / 2][k % 2 * 2] = h2_bits(__hmul2(bits_h2(x[k]), low));
            a[k / 2][k % 2 * 2 + 1] = h2_bits(__hmul2(bits_h2(y[k]), high));
        }
    } else {
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const uint8_t *unit = p + (FORMAT == Q8_0 ? half_ : half_ * 2 + k) * UNIT_BYTES;
            half2 scales = __hmul2(bits_h2(*reinterpret_cast<const uint32_t *>(unit + 512 + g * 4)), bits_h2(row.inverse));
            half2 low = __low2half2(scales), high = __high2half2(scales);
            uint32_t x0, x1, y0, y1;
            if constexpr (FORMAT == Q8_0) {
                const uint32_t *v = reinterpret_cast<const uint32_t *>(unit + lane * 16);
                q8_pairs(v[k], x0, x1);
                q8_pairs(v[k + 2], y0, y1);
            } else {
                uint4 v = *reinterpret_cast<const uint4 *>(unit + lane * 16);
                x0 = v.x, x1 = v.y, y0 = v.z, y1 = v.w;
            }
            a[k][0] = h2_bits(__hmul2(bits_h2(x0), low));
            a[k][1] = h2_bits(__hmul2(bits_h2(y0), high));
            a[k][2] = h2_bits(__hmul2(bits_h2(x1), low));
            a[k][3] = h2_bits(__hmul2(bits_h2(y1), high));
        }
    }
}

// A warp copies `slices` times 64 inputs of a tile, as far as there are units, to shared memory.
template <int FORMAT>
__device__ __forceinline__ void copy_slice(uint32_t to, const uint8_t *tile, int slice, int units, bool valid, int lane) {
    constexpr int CHUNKS = SLICE_BYTES<FORMAT> / 16;
    int have = valid ? (units - slice * UNITS<FORMAT>) * (UNIT_BYTES / 16) : 0;
    const uint8_t *from = tile + (int64_t)slice * SLICE_BYTES<FORMAT>;
#pragma unroll
    for (int i = 0; i < CHUNKS; i += 32) {
        int c = i + lane;
        if (c < CHUNKS) copy16(to + c * 16, c < have ? from + c * 16 : tile, c < have);
    }
}

// --- What becomes of the sums --------------------------------------------------------------------------------------
// What the epilogue knows of a block's activations, in shared memory.
template <int N> struct Columns {
    int32_t row[N];  // of the input
    int32_t pair[N]; // row * used + slot
    float weight[N]; // of the expert for it
};

// The work of this block, or a count of 0.
__device__ __forceinline__ Work my_work(const GemmArgs &a, int column) {
    if (!a.work) {
        int first = column * a.tile;
        return Work{0, first, min(a.tile, a.rows - first), 0};
    }
    if (column >= *a.work_count) return Work{0, 0, 0, 0};
    return a.work[column];
}

template <int N> __device__ __forceinline__ void fill_columns(Columns<N> &c, const GemmArgs &a, const Work &work) {
    for (int i = threadIdx.x; i < N; i += blockDim.x) {
        int at = work.first + min(i, work.count - 1), pair = a.work ? a.order[at] : at;
        c.pair[i] = pair;
        c.row[i] = a.epilogue == GATE_UP ? pair / a.used : at;
        c.weight[i] = a.work ? a.chosen[pair] : 1.0f;
    }
}

// s = g sigmoid(1.702 g) (u + 1), clamped.
__device__ __forceinline__ float swiglu(float g, float u, float limit) {
    g = fminf(g, limit);
    u = fminf(fmaxf(u, -limit), limit);
    return g / (1.0f + __expf(-1.702f * g)) * (u + 1.0f);
}

// Sums of rows g (d[0], d[1]) and g + 8 (d[2], d[3]) of a tile for the two activations from `column` on; a warp calls it together.
template <int N>
__device__ __forceinline__ void store(const GemmArgs &a, const Columns<N> &c, const Work &work, int tile, int column, const float (&d)[4], int lane) {
    int g = lane >> 2;
    if (a.epilogue == GATE_UP) {
        int o = 8 * tile + g;
        float gate = a.bias[work.expert * a.outputs + o], up = a.up_bias[work.expert * a.outputs + o];
        float s0 = swiglu(d[0] + gate, d[2] + up, a.limit) * c.weight[column];
        float s1 = swiglu(d[1] + gate, d[3] + up, a.limit) * c.weight[column + 1];
        // Rows g and g + 1 are neighbours in memory: the even lane stores both for one activation, the odd lane for the other.
        bool odd = g & 1;
        float other = __shfl_xor_sync(0xffffffffu, odd ? s0 : s1, 4);
        half2 both = odd ? __floats2half2_rn(other, s1) : __floats2half2_rn(s0, other);
        column += odd;
        half *to = static_cast<half *>(a.out) + (int64_t)(work.first + column) * a.out_stride + paired(o & ~1);
        if (column < work.count) *reinterpret_cast<half2 *>(to) = both;
        return;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int col = column + i;
        if (col >= work.count) return;
        float low = d[i], high = d[i + 2];
        if (a.epilogue == QKV) {
            store_qkv(a.qkv, c.row[col], tile >> 2, (tile & 3) * 8 + g, low, high);
            continue;
        }
        int row = a.epilogue == DOWN ? c.pair[col] : c.row[col];
        float *to = static_cast<float *>(a.out) + (int64_t)row * a.out_stride;
        float weight = c.weight[col];
        const float *bias = a.bias + (int64_t)work.expert * a.outputs;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int o = 16 * tile + g + 8 * r;
            float v = r ? high : low;
            if (o >= a.outputs) continue;
            if (a.epilogue == OUT_PROJ) to[o] += v + bias[o];
            else if (a.epilogue == DOWN) to[o] = v + weight * bias[o];
            else to[o] = v;
        }
    }
}
