// Reads memory and nothing else: the yardstick of every speed that bytes limit.
#include "common.cuh"

struct ReadArgs {
    const uint4 *from;
    int64_t count;
    uint32_t *sink; // scratch: written in one case of 2^32, which the compiler can't rule out
};

extern "C" __global__ void __launch_bounds__(512) read_all(__grid_constant__ const ReadArgs a) {
    constexpr int DEPTH = 4;
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    uint32_t sum = 0;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + (DEPTH - 1) * step < a.count; i += DEPTH * step) {
        uint4 v[DEPTH];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) v[d] = a.from[i + d * step];
#pragma unroll
        for (int d = 0; d < DEPTH; d++) sum ^= v[d].x ^ v[d].y ^ v[d].z ^ v[d].w;
    }
    for (; i < a.count; i += step) sum ^= a.from[i].x ^ a.from[i].w;
    if (sum == 0x9e3779b9u) *a.sink = sum;
}
