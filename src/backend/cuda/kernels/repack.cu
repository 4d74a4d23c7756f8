// Weights as the file has them, row by row, into tiles (common.cuh describes them), and the table for RoPE.
#include "common.cuh"

// ggml's ids of what a file may hold.
constexpr int F32 = 0, F16 = 1, Q8_0 = 8, BF16 = 30, MXFP4 = 39;
// What tiles hold, `Tiles::format`.
constexpr int TILE_MXFP4 = 0, TILE_Q8_0 = 1;
// Inputs that a block of threads takes at a time.
constexpr int CHUNK = 512;
constexpr int THREADS = 128;

// Rows of one matrix, from a multiple of 8 on. The same in upload.rs.
struct RepackArgs {
    const uint8_t *from;  // row 8 * first_group
    uint8_t *to;          // the first tile of the whole matrix
    uint32_t *fault;      // the largest `fault_code` of matrices with a value that tiles can't hold
    int64_t first_group;  // of 8 rows
    int64_t rows;         // of the whole matrix; rows beyond become zero
    int32_t cols;
    int32_t units;        // of a tile
    int32_t source;       // ggml's id
    int32_t format;       // as in `Tiles`
    int32_t order;        // 0 natural, 1 heads, 2 pairs
    int32_t offset;       // heads: the first head's number; pairs: 0 or 1, which half of a tile
    uint32_t fault_code;
};

__device__ int block_bytes(int source) {
    return source == MXFP4 ? 17 : source == Q8_0 ? 34 : source == F32 ? 128 : 64;
}

__device__ uint16_t u16_at(const uint8_t *p) { return p[0] | p[1] << 8; }

// Eight values from 8t on of a block of 32, as in common.cuh. Low nibbles are values 0..15, high ones 16..31.
__device__ uint32_t mxfp4_word(const uint8_t *block, int t) {
    uint32_t w = 0;
    for (int k = 0; k < 8; k++) {
        uint32_t code = block[1 + (t & 1) * 8 + k] >> (t >> 1) * 4 & 15;
        int j = k >> 1, high = (k & 1) * 16;
        int sign = j == 0 ? 15 : j == 1 ? 7 : j == 2 ? 8 : 0, rest = j == 0 ? 9 : j == 1 ? 1 : j == 2 ? 12 : 4;
        w |= (code >> 3) << (sign + high) | (code & 7) << (rest + high);
    }
    return w;
}

__device__ float mxfp4_value(uint32_t code) {
    // As f16 bits the three low bits are the value times 2^-14.
    float magnitude = __half2float(__ushort_as_half((code & 7) << 9)) * 16384.0f;
    return code & 8 ? -magnitude : magnitude;
}

// Eight values from 8t on of a block of 32, and what they are to be multiplied by; false where f16 can't hold one. The
// four lanes of a block are neighbours and call this together.
__device__ bool halves_of(const uint8_t *block, int source, int t, half (&h)[8], half &scale) {
    scale = __float2half(1.0f);
    if (source == F16) {
        for (int k = 0; k < 8; k++) h[k] = __ushort_as_half(u16_at(block + 2 * (8 * t + k)));
        return true;
    }
    if (source == Q8_0) {
        scale = __ushort_as_half(u16_at(block));
        for (int k = 0; k < 8; k++) h[k] = __int2half_rn((int8_t)block[2 + 8 * t + k]);
        return true;
    }
    if (source == MXFP4) {
        int exponent = block[0] - 127, kept = min(max(exponent, -24), 15);
        scale = __float2half(ldexpf(1.0f, kept));
        for (int k = 0; k < 8; k++) {
            uint32_t code = block[1 + (t & 1) * 8 + k] >> (t >> 1) * 4 & 15;
            h[k] = __float2half_rn(ldexpf(mxfp4_value(code), exponent - kept));
        }
        return exponent - kept <= 13;
    }
    float x[8], most = 0;
    bool finite = true;
    for (int k = 0; k < 8; k++) {
        int i = 8 * t + k;
        uint32_t bits = source == BF16 ? (uint32_t)u16_at(block + 2 * i) << 16
                                       : (uint32_t)u16_at(block + 4 * i) | (uint32_t)u16_at(block + 4 * i + 2) << 16;
        x[k] = __uint_as_float(bits);
        most = fmaxf(most, fabsf(x[k]));
        finite = finite && isfinite(x[k]);
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
    int exponent = most > 0 && isfinite(most) ? min(max(ilogbf(most) - 14, -24), 15) : -24;
    scale = __float2half(ldexpf(1.0f, exponent));
    for (int k = 0; k < 8; k++) {
        h[k] = __float2half_rn(ldexpf(x[k], -exponent));
        finite = finite && !__hisinf(h[k]);
    }
    return finite;
}

// Block of threads i takes the rows of group first_group + i: half a tile's. A group's rows are neighbours in every order.
extern "C" __global__ void __launch_bounds__(THREADS) repack(const __grid_constant__ RepackArgs a) {
    __shared__ uint8_t rows[8 * CHUNK * 4];
    int64_t group = a.first_group + blockIdx.x;
    int64_t tile = group / 2;
    int second = group % 2; // whether it is rows 8..15 of the tile
    if (a.order == 1) {
        int64_t head = a.offset + group / 8;
        tile = head * 4 + group % 4;
        second = group % 8 / 4;
    } else if (a.order == 2) {
        tile = group;
        second = a.offset;
    }
    uint8_t *to = a.to + tile * a.units * UNIT_BYTES;
    int blocks = a.cols / 32, size = block_bytes(a.source);
    int64_t row_bytes = (int64_t)blocks * size;
    int here = (int)min((int64_t)8, max((int64_t)0, a.rows - group * 8)); // rows that exist
    bool good = true;
    int padded = a.format == TILE_MXFP4 ? (blocks + 1) & ~1 : blocks;

    for (int first = 0; first < padded; first += CHUNK / 32) {
        int chunk = min(CHUNK / 32, blocks - first) * size;
        __syncthreads();
        for (int r = 0; r < here; r++)
            for (int i = threadIdx.x; i < chunk; i += THREADS)
                rows[r * CHUNK * 4 + i] = a.from[(blockIdx.x * 8 + r) * row_bytes + (int64_t)first * size + i];
        __syncthreads();
        // One block of 32 inputs, row g, and a quarter t of it.
        for (int item = threadIdx.x; item < CHUNK; item += THREADS) {
            int t = item % 4, g = item / 4 % 8, b = item / 32, lane = 4 * g + t;
            int at = first + b;
            bool real = at < blocks && g < here;
            const uint8_t *block = rows + g * CHUNK * 4 + b * size;
            if (a.format == TILE_MXFP4) {
                if (at >= padded) continue;
                uint8_t *unit = to + (at / 2) * UNIT_BYTES;
                int word = second + at % 2 * 2;
                ((uint32_t *)unit)[lane * 4 + word] = real ? mxfp4_word(block, t) : 0;
                if (t == 0) {
                    unit[512 + g * 4 + word] = real ? block[0] : 0;
                    good = good && (!real || block[0] <= 240);
                }
            } else if (a.format == TILE_Q8_0) {
                if (at >= padded) continue;
                uint8_t *unit = to + at * UNIT_BYTES;
                uint2 q = make_uint2(0x80808080u, 0x80808080u);
                if (real) {
                    const uint8_t *p = block + 2 + 8 * t;
                    q.x ^= p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24;
                    q.y ^= p[4] | p[5] << 8 | p[6] << 16 | (uint32_t)p[7] << 24;
                }
                ((uint2 *)unit)[lane * 2 + second] = q;
                if (t == 0) ((uint16_t *)(unit + 512))[g * 2 + second] = real ? u16_at(block) : 0;
            } else {
                half h[8] = {}, scale = __float2half(0.0f);
                half values[8], own;
                // Every lane: the four of a block compare their values.
                bool fits = halves_of(block, a.source, t, values, own);
                if (real) {
                    good = good && fits;
                    scale = own;
                    for (int k = 0; k < 8; k++) h[k] = values[k];
                }
                if (at >= padded) continue;
                for (int u = 0; u < 2; u++) {
                    uint8_t *unit = to + (at * 2 + u) * UNIT_BYTES;
                    uint2 v = make_uint2(h2_bits(__halves2half2(h[4 * u], h[4 * u + 1])),
                                         h2_bits(__halves2half2(h[4 * u + 2], h[4 * u + 3])));
                    ((uint2 *)unit)[lane * 2 + second] = v;
                    if (t == 0) ((half *)(unit + 512))[g * 2 + second] = scale;
                }
            }
        }
    }
    if (!good) atomicMax(a.fault, a.fault_code);
}

struct RopeTableArgs {
    float *table;          // [positions, 2, 32]
    const float *inv_freq; // [32]
    int32_t positions;
    float concentration;
};

// In f64: at position 100,000 an angle in f32 is off by 0.004.
extern "C" __global__ void rope_table(const __grid_constant__ RopeTableArgs a) {
    int i = threadIdx.x % 32, position = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (position >= a.positions) return;
    double angle = (double)position * (double)a.inv_freq[i];
    float *row = a.table + (int64_t)position * 64;
    row[i] = (float)cos(angle) * a.concentration;
    row[32 + i] = (float)sin(angle) * a.concentration;
}
