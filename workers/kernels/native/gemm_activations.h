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

// Lays out a product's x: first gets its memory, then fills it, chunk by chunk on any threads.
class ActivationLayout {
public:
    ActivationLayout(const LinearArgs& args, const Method& method);

    const RowBlocks& blocks() const { return blocks_; }
    // Of the memory that `place` takes, which is aligned to a cache line.
    int64_t bytes() const;
    void place(void* memory);
    int64_t num_chunks() const;
    void fill(int64_t chunk) const;
    const Activations& activations() const { return x_; }

private:
    void fill_block(int64_t block) const;
    void words_of_row(int64_t row, float* values, uint32_t* words) const;
    template <class Code>
    void quantized_words(int64_t row, float* values, Code* codes) const;
    void group_sums(const uint32_t* words, int rows, float* to) const;

    LinearArgs args_;
    const Method* method_;
    RowBlocks blocks_;
    Activations x_ = {};
    uint32_t* words_ = nullptr;
    RowScale* scales_ = nullptr;
    float* sums_ = nullptr;
};

}  // namespace trunkline
