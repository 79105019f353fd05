// Activations in the form that tiles read.
#pragma once

#include "gemm.h"

namespace trunkline {

// The rows of a product, in blocks of nearly equal size.
struct RowBlocks {
    int64_t num_rows;
    int64_t count;

    explicit RowBlocks(int64_t rows) : num_rows(rows), count((rows + kMaxRows - 1) / kMaxRows) {}
    int64_t begin(int64_t block) const { return num_rows * block / count; }
    int rows(int64_t block) const { return static_cast<int>(begin(block + 1) - begin(block)); }
};

// A row's share in the results of integer products.
struct RowScale {
    float scale;     // of a code
    int32_t offset;  // to be taken off its sums
};

struct Activations {
    const uint32_t* words;   // a block from row r on begins at r * words_per_row
    int64_t words_per_row;
    const RowScale* scales;  // [num_rows]; int8 only
    const float* sums;       // int4 only: [groups][rows] of a block from r * groups on
    int64_t groups;
};

// Lays out args.x for a method. Held by the calling thread until its next call.
Activations lay_out(const LinearArgs& args, const Method& method, const RowBlocks& blocks);

}  // namespace trunkline
