// What the kernels of attention share.
#pragma once

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
};

struct AttendArgs {
    const AttentionBatch* batch;
    const void* qkv;           // [num_rows, num_heads + 2 * num_kv_heads, head_dim]
    void* out;                 // [num_rows, num_heads * head_dim]
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

// The rows of the cache that hold the `size` positions from `first` on.
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
