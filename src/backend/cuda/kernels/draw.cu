// draw_max, draw_sum, draw_pick: a token for each row of logits, as sampler.rs draws it without masks, penalties and
// truncation. Every sum has the order that it has there, and nothing is contracted: the token is the same.
#include "common.cuh"

// One row to draw for. The same in draw.rs.
struct Draw {
    int32_t row;   // of the logits
    int32_t greedy;
    float scale;   // 1 / temperature
    int32_t pad;
    double u;      // in [0, 1)
};

// The likeliest token of a block of logits.
struct Best {
    float logit;
    int32_t id; // -1: a logit is not finite
};

struct DrawArgs {
    const float *logits;  // [.., vocab]
    const Draw *draws;
    const int2 *blocks;   // first token and the one after the last, ascending, at most DRAW_BLOCK each
    Best *best;           // [draws, count]
    double *sums;         // [draws, count]
    int32_t *ids;         // [draws]: the tokens, or -1 where a logit is not finite
    int32_t vocab;
    int32_t count;        // of blocks
};

constexpr int DRAW_BLOCK = 1024, PIECE = 256, LANES = 16, PIECES = DRAW_BLOCK / PIECE;

// e^x for x <= 0, as math.rs computes it.
__device__ __forceinline__ float exp_below(float x) {
    const float ROUND = 12582912.0f;
    float y = fmaxf(x, -87.0f);
    float t = __fadd_rn(__fmul_rn(y, 1.44269504088896340736f), ROUND);
    float n = __fsub_rn(t, ROUND);
    float r = __fsub_rn(__fsub_rn(y, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, -2.1219444e-4f));
    float tail = __fadd_rn(1.3981999e-3f, __fmul_rn(r, 1.9875691e-4f));
    tail = __fadd_rn(4.1665796e-2f, __fmul_rn(r, __fadd_rn(8.333452e-3f, __fmul_rn(r, tail))));
    float p = __fadd_rn(1.6666665e-1f, __fmul_rn(r, tail));
    p = __fadd_rn(0.5f, __fmul_rn(r, p));
    p = __fadd_rn(1.0f, __fadd_rn(r, __fmul_rn(__fmul_rn(r, r), p)));
    float scale = __uint_as_float((__float_as_uint(t) + 127u) << 23);
    return x < -87.0f ? 0.0f : __fmul_rn(p, scale);
}

__device__ __forceinline__ float weight(float logit, float max, float scale) {
    return exp_below(__fmul_rn(__fsub_rn(logit, max), scale));
}

// Whether `a` is better than `b`: the greater logit, then the lower id.
__device__ __forceinline__ Best better(Best a, Best b) {
    if (a.id < 0 || b.id < 0) return Best{0.0f, -1};
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id) ? a : b;
}

// The best of all threads' `mine`, the same in every thread; 256 threads.
__device__ Best block_best(Best mine) {
    __shared__ Best all[256];
    all[threadIdx.x] = mine;
    for (int half = 128; half; half >>= 1) {
        __syncthreads();
        if ((int)threadIdx.x < half) all[threadIdx.x] = better(all[threadIdx.x], all[threadIdx.x + half]);
    }
    __syncthreads();
    return all[0];
}

// The best of the row's blocks.
__device__ Best row_best(const DrawArgs &a, int draw) {
    const Best *best = a.best + (int64_t)draw * a.count;
    Best mine = best[min((int)threadIdx.x, a.count - 1)];
    for (int b = threadIdx.x + 256; b < a.count; b += 256) mine = better(mine, best[b]);
    return block_best(mine);
}

// A block of 256 threads for each block of logits (x) and each row (y).
extern "C" __global__ void __launch_bounds__(256) draw_max(__grid_constant__ const DrawArgs a) {
    wait_for_previous();
    let_next_start();
    const float *logits = a.logits + (int64_t)a.draws[blockIdx.y].row * a.vocab;
    int2 block = a.blocks[blockIdx.x];
    int first = block.x + min((int)threadIdx.x, block.y - block.x - 1);
    Best mine = {logits[first], first};
    if (!isfinite(mine.logit)) mine.id = -1;
    for (int i = first + 256; i < block.y; i += 256) {
        float logit = logits[i];
        mine = better(mine, Best{logit, isfinite(logit) ? i : -1});
    }
    mine = block_best(mine);
    if (threadIdx.x == 0) a.best[(int64_t)blockIdx.y * a.count + blockIdx.x] = mine;
}

// Sums of the weights of each piece of a block, [PIECES] in shared memory: 16 lanes in f32 each, put together in f64.
__device__ void piece_sums(const float *logits, int2 block, float max, float scale, double *pieces) {
    __shared__ float lanes[PIECES][LANES];
    int lane = threadIdx.x % LANES, piece = threadIdx.x / LANES;
    int begin = block.x + piece * PIECE, len = min(block.y - begin, PIECE);
    if (piece < PIECES) {
        float sum = 0.0f;
        for (int row = 0; row < len / LANES; row++) sum = __fadd_rn(sum, weight(logits[begin + row * LANES + lane], max, scale));
        lanes[piece][lane] = sum;
    }
    __syncthreads();
    if (piece < PIECES && lane == 0) {
        double sum = 0.0, rest = 0.0;
        for (int l = 0; l < LANES; l++) sum = __dadd_rn(sum, (double)lanes[piece][l]);
        for (int i = len > 0 ? len / LANES * LANES : 0; i < len; i++) rest = __dadd_rn(rest, (double)weight(logits[begin + i], max, scale));
        pieces[piece] = __dadd_rn(sum, rest);
    }
    __syncthreads();
}

// As draw_max: the sum of the block's weights.
extern "C" __global__ void __launch_bounds__(256) draw_sum(__grid_constant__ const DrawArgs a) {
    __shared__ double pieces[PIECES];
    wait_for_previous();
    let_next_start();
    Draw draw = a.draws[blockIdx.y];
    if (draw.greedy) return;
    Best best = row_best(a, blockIdx.y);
    const float *logits = a.logits + (int64_t)draw.row * a.vocab;
    piece_sums(logits, a.blocks[blockIdx.x], best.logit, draw.scale, pieces);
    if (threadIdx.x != 0) return;
    double sum = 0.0;
    for (int p = 0; p < PIECES; p++) sum = __dadd_rn(sum, pieces[p]);
    a.sums[(int64_t)blockIdx.y * a.count + blockIdx.x] = sum;
}

// Which of `count` sums holds the point `left` of their total; what is left of it there.
__device__ int which(const double *sums, int count, double &left) {
    int chosen = 0;
    for (int i = 0; i < count; i++) {
        if (sums[i] > 0.0) {
            chosen = i;
            if (left < sums[i]) break;
            left = __dsub_rn(left, sums[i]);
        }
    }
    return chosen;
}

// A block of 256 threads for each row.
extern "C" __global__ void __launch_bounds__(256) draw_pick(__grid_constant__ const DrawArgs a) {
    __shared__ double pieces[PIECES];
    __shared__ float weights[PIECE];
    __shared__ int2 chosen; // block, piece
    __shared__ double left;
    wait_for_previous();
    let_next_start();
    Draw draw = a.draws[blockIdx.x];
    Best best = row_best(a, blockIdx.x);
    if (draw.greedy || best.id < 0) {
        if (threadIdx.x == 0) a.ids[blockIdx.x] = best.id;
        return;
    }
    const double *sums = a.sums + (int64_t)blockIdx.x * a.count;
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int b = 0; b < a.count; b++) total = __dadd_rn(total, sums[b]);
        double at = __dmul_rn(draw.u, total);
        chosen.x = which(sums, a.count, at);
        left = at;
    }
    __syncthreads();
    const float *logits = a.logits + (int64_t)draw.row * a.vocab;
    int2 block = a.blocks[chosen.x];
    piece_sums(logits, block, best.logit, draw.scale, pieces);
    if (threadIdx.x == 0) {
        double at = left;
        chosen.y = which(pieces, PIECES, at);
        left = at;
    }
    __syncthreads();
    int begin = block.x + chosen.y * PIECE, len = min(block.y - begin, PIECE);
    if ((int)threadIdx.x < len) weights[threadIdx.x] = weight(logits[begin + threadIdx.x], best.logit, draw.scale);
    __syncthreads();
    if (threadIdx.x != 0) return;
    double total = 0.0;
    for (int i = 0; i < len; i++) total = __dadd_rn(total, (double)weights[i]);
    // The piece's own sum was rounded otherwise.
    double at = __dmul_rn(fmin(fmax(__ddiv_rn(left, pieces[chosen.y]), 0.0), 1.0), total);
    int id = begin;
    for (int i = 0; i < len; i++) {
        if (weights[i] > 0.0f) {
            id = begin + i;
            at = __dsub_rn(at, (double)weights[i]);
            if (at < 0.0) break;
        }
    }
    a.ids[blockIdx.x] = id;
}
