// The stages of a step with few rows (1 to 8), bound by reading the weights once.
//
// Per layer: `norm_qkv_rope_append`, attention (attention.cu), `out_proj_residual`, `norm_router`, `expert_gate_up_swiglu`,
// `expert_down_residual`; at the end `norm_lm_head`. Every block repeats the norm for itself rather than wait for another
// kernel.
// Products: f16 activations, exact f16 weights, f32 sums, the blocks' scales in f32.
#include "qkv.cuh"
#include "stream.cuh"

extern __shared__ __align__(128) uint8_t shared_memory[];

// Dynamic shared memory: the rings, the sums, the columns. The host computes the same (decode.rs).
struct Shared {
    Sums sums;
    float *scratch;
    half *columns;
    __device__ Shared(int stages, int rows) : sums((float *)(shared_memory + ring_bytes(stages)), rows) {
        scratch = sums.buffer + Sums::floats(rows);
        columns = (half *)(scratch + 2 * WARPS);
    }
};

// The units of a matrix that all rows go through.
struct Whole {
    const uint8_t *data;
    int64_t bytes; // of a tile
    __device__ explicit Whole(const Tiles &w) : data(w.data), bytes((int64_t)w.units * UNIT_BYTES) {}
    __device__ const uint8_t *operator()(int tile) const { return data + tile * bytes; }
};

// This lane's column: those beyond the rows repeat the last one, and nobody reads their sums.
__device__ __forceinline__ const half *lane_column(const half *columns, int stride, int rows) {
    int lane = threadIdx.x % 32;
    return columns + min(lane / 4, rows - 1) * stride + lane % 4 * 8;
}

// --- norm_qkv_rope_append -----------------------------------------------------------------------------------------
struct QkvArgs {
    Tiles w;
    QkvOut out;
    const float *x, *norm;
    float eps;
    int32_t rows, hidden, stages;
};
struct QkvStore {
    static constexpr int OUTPUTS = 8;
    const QkvOut &out;
    QkvPlace at;
    __device__ void load(int tile, int row, int column) { at.load(out, column, tile / 4, tile % 4 * 8 + row); }
    template <class Total> __device__ void store(Total total) const { at.store(total(0), total(8)); }
};
template <int F> __device__ __forceinline__ void qkv(const QkvArgs &a) {
    int padded = a.w.units * UNIT_INPUTS<F>, stride = column_stride(padded);
    Work work = block_work(a.w.tiles, a.w.units, 1);
    Shared s(a.stages, a.rows);
    Stream<Whole> stream(shared_memory, a.stages, work, Whole(a.w));
    norm_columns(s.columns, a.x, a.norm, a.rows, a.hidden, padded, a.eps, s.scratch);
    const half *column = lane_column(s.columns, stride, a.rows);
    run_tiles<F>(stream, s.sums, work, [&](int) { return column; }, QkvStore{a.out});
}

// --- out_proj_residual --------------------------------------------------------------------------------------------
struct OutArgs {
    Tiles w;
    float *x;
    const half *attention; // [rows, inputs]
    const float *bias;
    int32_t rows, inputs, stages;
};
struct OutStore {
    static constexpr int OUTPUTS = 16;
    const OutArgs &a;
    float *at;
    float x;
    __device__ void load(int tile, int row, int column) {
        int o = tile * 16 + row;
        at = o < a.w.outputs ? a.x + (int64_t)column * a.w.outputs + o : nullptr;
        if (at) x = *at + a.bias[o];
    }
    template <class Total> __device__ void store(Total total) const {
        if (at) *at = x + total(0);
    }
};
template <int F> __device__ __forceinline__ void out_proj(const OutArgs &a) {
    int padded = a.w.units * UNIT_INPUTS<F>, stride = column_stride(padded);
    Work work = block_work(a.w.tiles, a.w.units, 1);
    Shared s(a.stages, a.rows);
    Stream<Whole> stream(shared_memory, a.stages, work, Whole(a.w));
    wait_for_previous();
    let_next_start();
    for (int c = 0; c < a.rows; c++) {
        for (int at = threadIdx.x * 8; at < a.inputs; at += THREADS * 8)
            *(uint4 *)(s.columns + c * stride + at) = *(const uint4 *)(a.attention + (int64_t)c * a.inputs + at);
        for (int at = a.inputs + threadIdx.x; at < padded; at += THREADS) s.columns[c * stride + at] = __float2half_rn(0);
    }
    __syncthreads();
    const half *column = lane_column(s.columns, stride, a.rows);
    run_tiles<F>(stream, s.sums, work, [&](int) { return column; }, OutStore{a});
}

// --- norm_router --------------------------------------------------------------------------------------------------
struct RouterArgs {
    const float *x, *norm;
    const float *w;    // [experts, hidden]
    const float *bias; // [experts]
    float *logits;     // [rows, experts]
    float eps;
    int32_t rows, hidden, experts;
};
// One block an expert. The norm's factor and the product are sums over the same elements, so one pass gives both.
extern "C" __global__ void __launch_bounds__(256) norm_router(__grid_constant__ const RouterArgs a) {
    constexpr int MOST = 4;
    __shared__ float2 sums[COLUMNS][8];
    int expert = blockIdx.x, warp = threadIdx.x / 32;
    const float *w = a.w + (int64_t)expert * a.hidden;
    float4 v[MOST];
    auto weight = [&](int at) {
        float4 p = *(const float4 *)(w + at), q = *(const float4 *)(a.norm + at);
        return make_float4(p.x * q.x, p.y * q.y, p.z * q.z, p.w * q.w);
    };
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int at = (threadIdx.x + i * 256) * 4;
        if (at < a.hidden) v[i] = weight(at);
    }
    wait_for_previous();
    let_next_start();
    for (int c = 0; c < a.rows; c++) {
        const float *row = a.x + (int64_t)c * a.hidden;
        float squares = 0, product = 0;
        auto add = [&](float4 x, float4 w) {
            squares += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
            product += x.x * w.x + x.y * w.y + x.z * w.z + x.w * w.w;
        };
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int at = (threadIdx.x + i * 256) * 4;
            if (at < a.hidden) add(*(const float4 *)(row + at), v[i]);
        }
        for (int at = (threadIdx.x + MOST * 256) * 4; at < a.hidden; at += 1024) add(*(const float4 *)(row + at), weight(at));
        squares = warp_sum(squares), product = warp_sum(product);
        if (threadIdx.x % 32 == 0) sums[c][warp] = make_float2(squares, product);
    }
    __syncthreads();
    if (threadIdx.x < a.rows) {
        float squares = 0, product = 0;
        for (int i = 0; i < 8; i++) squares += sums[threadIdx.x][i].x, product += sums[threadIdx.x][i].y;
        a.logits[threadIdx.x * a.experts + expert] = product * rsqrtf(squares / a.hidden + a.eps) + a.bias[expert];
    }
}

// --- Routing ------------------------------------------------------------------------------------------------------
constexpr int MOST_EXPERTS = 128;
constexpr int MOST_USED = 8;

// Who goes where: each row's experts, best first, and the experts that any row uses, in order.
struct Routing {
    float weight[COLUMNS][MOST_USED];
    int8_t slot[MOST_EXPERTS][COLUMNS]; // of the expert in the row's choice, or -1
    int16_t active[MOST_EXPERTS];
    int16_t expert[COLUMNS][MOST_USED];
    int n;
};

// A key that orders as the float does.
__device__ __forceinline__ uint32_t order_key(float v) {
    uint32_t u = __float_as_uint(v);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}
// One warp a row: the `used` largest of `experts` logits, equal ones by lower index, and a softmax over those.
__device__ inline void choose(Routing &r, const float *logits, int row, int experts, int used) {
    constexpr int EACH = MOST_EXPERTS / 32;
    int lane = threadIdx.x % 32;
    float v[EACH], best = 0, mine = 0;
    uint32_t key[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int e = lane + 32 * i;
        bool real = e < experts;
        v[i] = real ? logits[row * experts + e] : 0;
        key[i] = real ? max(order_key(v[i]), 1u) : 0;
        if (real) r.slot[e][row] = -1;
    }
    __syncwarp();
    int chosen = 0;
    for (int k = 0; k < used; k++) {
        uint32_t top = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) top = max(top, key[i]);
        top = __reduce_max_sync(0xffffffffu, top);
        int at = MOST_EXPERTS;
#pragma unroll
        for (int i = EACH - 1; i >= 0; i--)
            if (key[i] == top) at = lane + 32 * i;
        at = __reduce_min_sync(0xffffffffu, at);
        float value = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++)
            if (at == lane + 32 * i) value = v[i], key[i] = 0;
        value = __shfl_sync(0xffffffffu, value, at % 32);
        if (k == 0) best = value;
        if (lane == k) mine = value, chosen = at;
    }
    float p = lane < used ? expf(mine - best) : 0, sum = warp_sum(p);
    if (lane < used) r.weight[row][lane] = p / sum, r.expert[row][lane] = chosen, r.slot[chosen][row] = lane;
}
// After all rows have chosen: the list of active experts. One warp.
__device__ inline void list_active(Routing &r, int rows, int experts) {
    int lane = threadIdx.x % 32, n = 0;
    for (int base = 0; base < experts; base += 32) {
        int e = base + lane;
        bool used = false;
        if (e < experts)
            for (int c = 0; c < rows; c++) used |= r.slot[e][c] >= 0;
        uint32_t mask = __ballot_sync(0xffffffffu, used);
        if (used) r.active[n + __popc(mask & ((1u << lane) - 1))] = e;
        n += __popc(mask);
    }
    if (lane == 0) r.n = n;
}
// The routing of all rows, by all threads of the block; rows <= WARPS.
__device__ __forceinline__ void route(Routing &r, const float *logits, int rows, int experts, int used) {
    int warp = threadIdx.x / 32;
    if (warp < rows) choose(r, logits, warp, experts, used);
    __syncthreads();
    if (warp == 0) list_active(r, rows, experts);
    __syncthreads();
}

// --- expert_gate_up_swiglu ----------------------------------------------------------------------------------------
struct GateUpArgs {
    Tiles w;
    const float *x, *norm, *logits;
    const float *gate_bias, *up_bias; // [experts, width]
    half *out;                        // [COLUMNS * used + 1, out_stride]: SwiGLU times the expert's weight; the last row stays zero
    unsigned long long *touched;      // counts experts whose weights were read
    float eps, limit;
    int32_t rows, hidden, width, experts, used, out_stride, stages;
};
struct GateUpStore {
    static constexpr int OUTPUTS = 8;
    const GateUpArgs &a;
    const Routing &routing;
    const Divider &by_tiles;
    half *at; // null: the row did not choose this expert
    float gate_bias, up_bias, weight;
    __device__ void load(int item, int row, int column) {
        int i = by_tiles(item), e = routing.active[i], o = (item - i * a.w.tiles) * 8 + row, slot = routing.slot[e][column];
        at = nullptr;
        if (slot < 0 || o >= a.width) return;
        at = a.out + ((int64_t)column * a.used + slot) * a.out_stride + o;
        gate_bias = a.gate_bias[e * a.width + o], up_bias = a.up_bias[e * a.width + o], weight = routing.weight[column][slot];
    }
    template <class Total> __device__ void store(Total total) const {
        if (!at) return;
        float gate = fminf(total(0) + gate_bias, a.limit), up = fminf(fmaxf(total(8) + up_bias, -a.limit), a.limit);
        *at = __float2half_rn(gate / (1.0f + __expf(-1.702f * gate)) * (up + 1.0f) * weight);
    }
};
template <int F> __device__ __forceinline__ void gate_up(const GateUpArgs &a) {
    __shared__ Routing routing;
    int padded = a.w.units * UNIT_INPUTS<F>, stride = column_stride(padded);
    Shared s(a.stages, a.rows);
    wait_for_previous();
    let_next_start();
    route(routing, a.logits, a.rows, a.experts, a.used);
    Work work = block_work(routing.n * a.w.tiles, a.w.units, 1);
    Whole whole(a.w);
    if (blockIdx.x == 0 && threadIdx.x == 0) atomicAdd(a.touched, (unsigned long long)routing.n);
    Divider by_tiles(a.w.tiles);
    auto base = [&](int item) {
        int i = by_tiles(item);
        return whole(routing.active[i] * a.w.tiles + item - i * a.w.tiles);
    };
    Stream<decltype(base)> stream(shared_memory, a.stages, work, base);
    norm_columns(s.columns, a.x, a.norm, a.rows, a.hidden, padded, a.eps, s.scratch);
    const half *column = lane_column(s.columns, stride, a.rows);
    run_tiles<F>(stream, s.sums, work, [&](int) { return column; }, GateUpStore{a, routing, by_tiles});
}

// --- expert_down_residual -----------------------------------------------------------------------------------------
struct DownArgs {
    Tiles w;
    float *x;
    const half *in; // as GateUpArgs.out; a row that did not choose an expert reads zeros there
    const float *logits;
    const float *bias; // [experts, hidden]
    int32_t rows, experts, used, in_stride, stages;
    int32_t staged; // 1: one row, whose inputs fit into shared memory
};
struct DownStore {
    static constexpr int OUTPUTS = 16;
    const DownArgs &a;
    const Routing &routing;
    float *at;
    float x;
    __device__ void load(int tile, int row, int column) {
        int o = tile * 16 + row;
        at = o < a.w.outputs ? a.x + (int64_t)column * a.w.outputs + o : nullptr;
        if (!at) return;
        x = *at;
        for (int k = 0; k < a.used; k++) x += routing.weight[column][k] * a.bias[routing.expert[column][k] * a.w.outputs + o];
    }
    template <class Total> __device__ void store(Total total) const {
        if (at) *at = x + total(0);
    }
};
template <int F> __device__ __forceinline__ void down(const DownArgs &a) {
    __shared__ Routing routing;
    Shared s(a.stages, a.rows);
    // The router ran two kernels ago: see common.cuh.
    route(routing, a.logits, a.rows, a.experts, a.used);
    int n = routing.n;
    Work work = block_work(a.w.tiles, a.w.units, n);
    Whole whole(a.w);
    auto base = [&](int segment) {
        int tile = work.by_segments(segment);
        return whole(routing.active[segment - tile * n] * a.w.tiles + tile);
    };
    Stream<decltype(base)> stream(shared_memory, a.stages, work, base);
    wait_for_previous();
    let_next_start();
    int lane = threadIdx.x % 32, g = min(lane / 4, a.rows - 1), t = lane % 4;
    const half *in = a.in;
    int stride = a.in_stride, none = COLUMNS * a.used;
    if (a.staged) {
        stride = column_stride(a.in_stride), none = 0;
        for (int i = threadIdx.x * 8; i < a.used * a.in_stride; i += THREADS * 8)
            *(uint4 *)(s.columns + i / a.in_stride * stride + i % a.in_stride) = *(const uint4 *)(a.in + i);
        __syncthreads();
        in = s.columns;
    }
    auto column = [&](int segment) {
        int slot = routing.slot[routing.active[segment - work.by_segments(segment) * n]][g];
        return in + (int64_t)(slot >= 0 ? g * a.used + slot : none) * stride + 8 * t;
    };
    run_tiles<F>(stream, s.sums, work, column, DownStore{a, routing});
}

// --- norm_lm_head -------------------------------------------------------------------------------------------------
struct HeadArgs {
    Tiles w;
    const float *x, *norm;
    float *logits; // [rows, outputs]
    float eps;
    int32_t rows, hidden, stages;
};
struct HeadStore {
    static constexpr int OUTPUTS = 16;
    const HeadArgs &a;
    float *at;
    __device__ void load(int tile, int row, int column) {
        int o = tile * 16 + row;
        at = o < a.w.outputs ? a.logits + (int64_t)column * a.w.outputs + o : nullptr;
    }
    template <class Total> __device__ void store(Total total) const {
        if (at) *at = total(0);
    }
};
template <int F> __device__ __forceinline__ void lm_head(const HeadArgs &a) {
    int padded = a.w.units * UNIT_INPUTS<F>, stride = column_stride(padded);
    Work work = block_work(a.w.tiles, a.w.units, 1);
    Shared s(a.stages, a.rows);
    Stream<Whole> stream(shared_memory, a.stages, work, Whole(a.w));
    norm_columns(s.columns, a.x, a.norm, a.rows, a.hidden, padded, a.eps, s.scratch);
    const half *column = lane_column(s.columns, stride, a.rows);
    run_tiles<F>(stream, s.sums, work, [&](int) { return column; }, HeadStore{a});
}

// One kernel for each stage and format.
#define STAGE(stage, Args)                                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) stage##_mxfp4(__grid_constant__ const Args a) { stage<MXFP4>(a); } \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) stage##_q8_0(__grid_constant__ const Args a) { stage<Q8_0>(a); }   \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) stage##_f16(__grid_constant__ const Args a) { stage<F16>(a); }
STAGE(qkv, QkvArgs)
STAGE(out_proj, OutArgs)
STAGE(gate_up, GateUpArgs)
STAGE(down, DownArgs)
STAGE(lm_head, HeadArgs)
