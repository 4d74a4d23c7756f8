// After attention on a sliding layer that read `fresh`: its last positions go to the ring.
#include "common.cuh"

// The same in attention.rs.
struct KeepWindowArgs {
    const half *fresh; // [rows, kv_heads, 2, 64]
    Cache cache;
    const Segment *segments;
};

// A block copies 32 positions (blockIdx.z) of one KV head (y) of a segment (x): of its last ring_steps * 32 positions.
extern "C" __global__ void __launch_bounds__(128) keep_window(__grid_constant__ const KeepWindowArgs a) {
    wait_for_previous();
    let_next_start();
    Segment s = a.segments[blockIdx.x];
    int end = s.start + s.len, kv_head = blockIdx.y;
    int from = end - (int)(gridDim.z - blockIdx.z) * KV_BLOCK;
    constexpr int CHUNKS = 2 * HEAD_DIM / 8; // of 16 bytes, a position's keys and values
    for (int i = threadIdx.x; i < KV_BLOCK * CHUNKS; i += blockDim.x) {
        int position = from + i / CHUNKS, chunk = i % CHUNKS;
        if (position < s.start) continue;
        const half *source = a.fresh + ((int64_t)(s.first_row + position - s.start) * a.cache.kv_heads + kv_head) * 2 * HEAD_DIM;
        half *to = cache_step(a.cache, s, position, kv_head) + position % KV_BLOCK * HEAD_DIM;
        if (chunk >= CHUNKS / 2) to += (KV_BLOCK - 1) * HEAD_DIM; // values lie after all keys of the step
        ((uint4 *)to)[chunk] = ((const uint4 *)source)[chunk];
    }
}
