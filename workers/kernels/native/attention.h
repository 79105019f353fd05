// What the kernels of attention share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernel.h"
#include "vec.h"

namespace trunkline {

// One step's batch, as AttentionMetadata in Python has it. It lies at one address for good, so that
// recorded calls meet the step that is current when they are played.
struct AttentionBatch {
    const int64_t* slots;         // [num_rows]
    const int32_t* query_starts;  // [num_sequences + 1]
    const int32_t* context_lens;  // [num_sequences]
    const int32_t* block_tables;  // [num_sequences, table_stride]
    int64_t table_stride;
    int64_t num_sequences;
    int64_t num_rows;             // without padding
    // Where only some of a sequence's blocks are in its table: how many, and which of the sequence's
    // they are, in ascending order. Null where the table has all from the first on.
    const int32_t* table_lens;    // [num_sequences]
    const int32_t* block_places;  // [num_sequences, table_stride]
};

struct AttendArgs {
    const AttentionBatch* batch;
    const void* qkv;           // [num_rows, num_heads + 2 * num_kv_heads, head_dim]
    void* out;                 // [num_rows, num_heads * head_dim], or null
    float* partial;            // instead: [num_rows, num_heads * (head_dim + 1)], see store_partial
    const void* keys;          // [num_blocks, block_size, num_kv_heads, head_dim]
    const void* values;
    const float* key_scales;   // [num_blocks, block_size, num_kv_heads], or null
    const float* value_scales;
    int64_t num_rows;          // with padding
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t block_size;
    int64_t window;            // positions that a query sees
    float scale;
    DType dtype;
    DType cache_dtype;
    int32_t row_by_row;        // every query as if it were its step's only one
};

constexpr int64_t kMaxHeadDim = 512;

// Elements of a Pair.
constexpr int64_t kPair = 2 * kWidth;

// Below any score, and yet their difference is a number.
constexpr float kNoMaximum = -3.0e38f;

inline int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// How many slots of a sequence's table stand at positions before `position`. Slots count on without
// gaps where positions have some, in the same order: what a query sees is a run of either.
inline int64_t slots_before(const AttendArgs& args, int64_t sequence, int64_t position) {
    const AttentionBatch& batch = *args.batch;
    if (position <= 0 || !batch.block_places) return std::max<int64_t>(0, position);
    const int32_t* places = batch.block_places + sequence * batch.table_stride;
    const int32_t* end = places + batch.table_lens[sequence];
    const int64_t place = position / args.block_size;
    const int32_t* found = std::lower_bound(places, end, place);
    const int64_t within = found != end && *found == place ? position % args.block_size : 0;
    return (found - places) * args.block_size + within;
}

// The result of one query head over some positions: softmax over these alone, times their values.
// A row has all heads' results and then their log-sum-exps. `total` is zero if it sees none of them.
inline void store_partial(
    const AttendArgs& args, int64_t row, int64_t head, const float* sums, float total, float peak) {
    float* to = args.partial + row * args.num_heads * (args.head_dim + 1);
    float* result = to + head * args.head_dim;
    float& log_sum_exp = to[args.num_heads * args.head_dim + head];
    if (total == 0.0f) {
        std::fill(result, result + args.head_dim, 0.0f);
        log_sum_exp = -INFINITY;
        return;
    }
    const float factor = 1.0f / total;
    for (int64_t i = 0; i < args.head_dim; ++i) result[i] = sums[i] * factor;
    log_sum_exp = peak + std::log(total);
}

// The rows of the cache that hold the `size` slots of a sequence's table from `first` on.
inline void find_slots(
    const AttendArgs& args, int64_t sequence, int64_t first, int64_t size, int64_t* slots) {
    const int32_t* table = args.batch->block_tables + sequence * args.batch->table_stride;
    int64_t block = first / args.block_size, offset = first % args.block_size;
    for (int64_t i = 0; i < size; ++i) {
        slots[i] = table[block] * args.block_size + offset;
        if (++offset == args.block_size) ++block, offset = 0;
    }
}

// A kv head's scales at some slots.
inline void gather_scales(
    const AttendArgs& args, const float* scales, int64_t kv_head, const int64_t* slots, int64_t size,
    float* out) {
    for (int64_t i = 0; i < size; ++i) out[i] = scales[slots[i] * args.num_kv_heads + kv_head];
}

}  // namespace trunkline
