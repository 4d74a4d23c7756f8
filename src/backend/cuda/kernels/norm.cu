// embed, norm_rows, norm_router_topk: what the batch chain does to whole rows. x is the residual, f32; h is f16, in paired order.
#include "gemm.cuh"
#include <cuda_bf16.h>

struct EmbedArgs {
    const uint8_t *table; // token_embd as in the file
    const Row *rows;
    float *x;
    int32_t hidden;
    int32_t format; // ggml's number: F32 0, F16 1, Q8_0 8, BF16 30, MXFP4 39
    int32_t count;
    int32_t pad;
};

// x[r] = token_embd[token of r]; a block a row.
extern "C" __global__ void __launch_bounds__(256) embed(__grid_constant__ const EmbedArgs a) {
    wait_for_previous();
    let_next_start();
    int64_t token = a.rows[blockIdx.x].token;
    float *x = a.x + (int64_t)blockIdx.x * a.hidden;
    for (int i = threadIdx.x; i < a.hidden; i += blockDim.x) {
        int64_t at = token * a.hidden + i;
        float v;
        if (a.format == 8) {
            // 34-byte blocks, 2-byte aligned: d, then 32 signed bytes.
            const uint8_t *block = a.table + at / 32 * 34;
            v = __half2float(*reinterpret_cast<const half *>(block)) * (float)*reinterpret_cast<const int8_t *>(block + 2 + at % 32);
        } else if (a.format == 39) {
            // 17-byte blocks: e, then values 0..15 in low and 16..31 in high nibbles. A code's three low bits are, as f16, its value times 2^-14.
            const uint8_t *block = a.table + at / 32 * 17;
            int k = at % 32, code = block[1 + k % 16] >> k / 16 * 4;
            float magnitude = __half2float(__ushort_as_half((code & 7) << 9)) * 16384.0f;
            v = ldexpf(code & 8 ? -magnitude : magnitude, block[0] - 127);
        } else if (a.format == 1) {
            v = __half2float(reinterpret_cast<const half *>(a.table)[at]);
        } else if (a.format == 30) {
            v = __bfloat162float(reinterpret_cast<const __nv_bfloat16 *>(a.table)[at]);
        } else {
            v = reinterpret_cast<const float *>(a.table)[at];
        }
        x[i] = v;
    }
}

struct NormArgs {
    float *x;             // [.., hidden]
    const float *y;       // [rows, used, hidden] of the experts, to be added first, or null
    half *h;              // [rows, stride]
    const float *weight;
    const int32_t *list;  // rows of x, or null: all
    int32_t hidden;
    int32_t stride;
    int32_t used;
    float eps;
};

// Sum over the block, the same in every thread.
__device__ __forceinline__ float block_sum(float v) {
    __shared__ float sums[32];
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = v;
    __syncthreads();
    v = 0.0f;
    for (int w = 0; w < (int)blockDim.x / 32; w++) v += sums[w];
    __syncthreads();
    return v;
}

// Four values to their places in paired order: pairs 2 apart by `hi`.
__device__ __forceinline__ void store_paired(half *h, int i, float4 v) {
    *reinterpret_cast<half2 *>(h + paired(i)) = __floats2half2_rn(v.x, v.y);
    *reinterpret_cast<half2 *>(h + paired(i + 2)) = __floats2half2_rn(v.z, v.w);
}

__device__ __forceinline__ float4 scaled(float4 x, float4 w, float scale) {
    return make_float4(x.x * scale * w.x, x.y * scale * w.y, x.z * scale * w.z, x.w * scale * w.w);
}

// x[r] += the experts' outputs; h[r] = rmsnorm(x[r]) * weight; a block a row.
extern "C" __global__ void __launch_bounds__(256) norm_rows(__grid_constant__ const NormArgs a) {
    wait_for_previous();
    let_next_start();
    const int r = blockIdx.x, width = a.hidden / 4;
    float4 *x = reinterpret_cast<float4 *>(a.x + (int64_t)(a.list ? a.list[r] : r) * a.hidden);
    const float4 *y = reinterpret_cast<const float4 *>(a.y + (a.y ? (int64_t)r * a.used * a.hidden : 0));
    float sum = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float4 v = x[i];
        if (a.y) {
            for (int slot = 0; slot < a.used; slot++) {
                float4 add = y[slot * width + i];
                v.x += add.x, v.y += add.y, v.z += add.z, v.w += add.w;
            }
            x[i] = v;
        }
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float scale = rsqrtf(block_sum(sum) / a.hidden + a.eps);
    half *h = a.h + (int64_t)r * a.stride;
    const float4 *weight = reinterpret_cast<const float4 *>(a.weight);
    for (int i = threadIdx.x; i < width; i += blockDim.x) store_paired(h, i * 4, scaled(x[i], weight[i], scale));
}

struct RouterArgs {
    const float *x;
    half *h;              // [rows, stride]
    const float *weight;
    const int32_t *list;  // rows of x, or null: all
    const Row *tokens;    // rows without a token (segment < 0) get no experts
    const float *router;  // [experts, hidden]
    const float *bias;
    int32_t *ids;         // [rows, used], best first
    float *chosen;        // [rows, used], a softmax over them
    int32_t rows;
    int32_t hidden;
    int32_t stride;
    int32_t experts;      // at most 128
    int32_t used;
    float eps;
};

// The greatest of a warp, the lower index among equals; the order of f32's total_cmp.
__device__ __forceinline__ int64_t greatest(int64_t key) {
#pragma unroll
    for (int m = 16; m; m >>= 1) key = max(key, (int64_t)__shfl_xor_sync(0xffffffffu, key, m));
    return key;
}

// The best `used` experts of a row of logits, by a warp.
__device__ __forceinline__ void top_k(const RouterArgs &a, const float *logits, int r, int lane) {
    if (a.tokens[a.list ? a.list[r] : r].segment < 0) {
        for (int slot = lane; slot < a.used; slot += 32) a.ids[(int64_t)r * a.used + slot] = -1;
        return;
    }
    int64_t keys[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int e = lane + 32 * i;
        int32_t bits = e < a.experts ? __float_as_int(logits[e]) : 0;
        bits ^= (uint32_t)(bits >> 31) >> 1;
        keys[i] = e < a.experts ? (int64_t)bits * 256 + (255 - e) : INT64_MIN;
    }
    float best = 0.0f, total = 0.0f;
    for (int slot = 0; slot < a.used; slot++) {
        int64_t top = greatest(max(max(keys[0], keys[1]), max(keys[2], keys[3])));
        int e = 255 - (int)(top & 255);
#pragma unroll
        for (int i = 0; i < 4; i++) keys[i] = e == lane + 32 * i ? INT64_MIN : keys[i];
        if (!slot) best = logits[e];
        total += expf(logits[e] - best);
        if (!lane) a.ids[(int64_t)r * a.used + slot] = e;
    }
    __syncwarp();
    for (int slot = lane; slot < a.used; slot += 32) {
        int64_t at = (int64_t)r * a.used + slot;
        a.chosen[at] = expf(logits[a.ids[at]] - best) / total;
    }
}

// h = rmsnorm(x) * weight in f32 for the router and in f16 for the experts; router's logits; top k. ROWS rows a
// block, so that the router's matrix is read less often; each warp holds ROWS x EXPERTS sums.
template <int ROWS, int EXPERTS> __device__ __forceinline__ void norm_router_topk(const RouterArgs &a) {
    extern __shared__ float4 shared4[];
    float *h = reinterpret_cast<float *>(shared4), *logits = h + ROWS * a.hidden; // [ROWS, hidden], [ROWS, experts]
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = blockDim.x / 32;
    const int first = blockIdx.x * ROWS, width = a.hidden / 4;
    // The router's matrix is nobody's output: on its way to L2 while the kernel ahead ends.
    const int64_t lines = (int64_t)a.experts * a.hidden / 32;
    for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < lines; i += gridDim.x * blockDim.x)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(a.router + i * 32));
    wait_for_previous();
    let_next_start();
    for (int r = 0; r < ROWS; r++) {
        float4 *own = shared4 + r * width;
        if (first + r >= a.rows) {
            for (int i = threadIdx.x; i < width; i += blockDim.x) own[i] = make_float4(0, 0, 0, 0);
            continue;
        }
        const float4 *x = reinterpret_cast<const float4 *>(a.x + (int64_t)(a.list ? a.list[first + r] : first + r) * a.hidden);
        float sum = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            float4 v = own[i] = x[i];
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        float scale = rsqrtf(block_sum(sum) / a.hidden + a.eps);
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            float4 v = own[i] = scaled(own[i], reinterpret_cast<const float4 *>(a.weight)[i], scale);
            store_paired(a.h + (int64_t)(first + r) * a.stride, i * 4, v);
        }
    }
    __syncthreads();
    for (int e = warp * EXPERTS; e < a.experts; e += warps * EXPERTS) {
        float sums[ROWS][EXPERTS] = {};
        const float4 *w[EXPERTS];
#pragma unroll
        for (int k = 0; k < EXPERTS; k++) w[k] = reinterpret_cast<const float4 *>(a.router) + (int64_t)min(e + k, a.experts - 1) * width;
#pragma unroll 4 / ROWS + 1
        for (int i = lane; i < width; i += 32) {
            float4 m[EXPERTS];
#pragma unroll
            for (int k = 0; k < EXPERTS; k++) m[k] = __ldg(w[k] + i);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float4 v = shared4[r * width + i];
#pragma unroll
                for (int k = 0; k < EXPERTS; k++)
                    sums[r][k] += v.x * m[k].x + v.y * m[k].y + v.z * m[k].z + v.w * m[k].w;
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int k = 0; k < EXPERTS; k++) {
                float sum = warp_sum(sums[r][k]);
                if (!lane && e + k < a.experts) logits[r * a.experts + e + k] = sum + a.bias[e + k];
            }
        }
    }
    __syncthreads();
    for (int r = warp; r < ROWS; r += warps)
        if (first + r < a.rows) top_k(a, logits + r * a.experts, first + r, lane);
}

extern "C" __global__ void __launch_bounds__(512, 1) norm_router_topk_1(__grid_constant__ const RouterArgs a) { norm_router_topk<1, 2>(a); }
extern "C" __global__ void __launch_bounds__(256) norm_router_topk_8(__grid_constant__ const RouterArgs a) { norm_router_topk<8, 4>(a); }

struct PairArgs {
    uint32_t *h;    // pairs of f16
    int64_t blocks; // of 32 inputs
};

// Puts rows into paired order where they are; a thread for 32 inputs.
extern "C" __global__ void __launch_bounds__(256) pair_rows(__grid_constant__ const PairArgs a) {
    wait_for_previous();
    let_next_start();
    int64_t block = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (block >= a.blocks) return;
    uint4 *h = reinterpret_cast<uint4 *>(a.h) + block * 4;
    uint32_t in[16], out[16];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint4 v = h[i];
        in[i * 4] = v.x, in[i * 4 + 1] = v.y, in[i * 4 + 2] = v.z, in[i * 4 + 3] = v.w;
    }
#pragma unroll
    for (int i = 0; i < 16; i++) out[paired(2 * i) / 2] = in[i];
#pragma unroll
    for (int i = 0; i < 4; i++) h[i] = make_uint4(out[i * 4], out[i * 4 + 1], out[i * 4 + 2], out[i * 4 + 3]);
}
