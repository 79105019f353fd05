#include "gemm_activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "pool.h"
#include "scratch.h"

namespace trunkline {
namespace {

constexpr int64_t kChunkInputs = 32768;

struct Layout {
    const LinearArgs& args;
    const Method& method;
    const RowBlocks& blocks;
    int64_t words_per_row;
    int64_t groups;
    uint32_t* words;
    RowScale* scales;
    float* sums;
};

int64_t padded(int64_t inputs, int64_t to) { return (inputs + to - 1) / to * to; }

// A row as float32, its inputs in the weight's order.
template <class T>
void read_row(const T* row, const LinearArgs& args, float* to) {
    const int64_t inputs = args.num_inputs;
    int64_t k = 0;
    if (args.input_order != nullptr) {
        for (; k < inputs; ++k) to[k] = to_float(row[args.input_order[k]]);
        return;
    }
    for (; k + kWidth <= inputs; k += kWidth) store(to + k, load(row + k));
    for (; k < inputs; ++k) to[k] = to_float(row[k]);
}

void read_row(const LinearArgs& args, int64_t row, float* to) {
    const int64_t at = row * args.num_inputs;
    if (args.dtype == DType::float32)
        read_row(static_cast<const float*>(args.x) + at, args, to);
    else
        read_row(static_cast<const BFloat16*>(args.x) + at, args, to);
}

// Codes of a row of int8 with one scale, which is returned; the largest absolute value's is 127. The
// scale of a row that is not finite is NaN, so that its products are too.
template <class Code>
float quantize(const float* row, int64_t inputs, Code* codes) {
    const float absmax = largest_magnitude(row, inputs);
    if (!(absmax > 0.0f)) {
        std::fill(codes, codes + inputs, Code{0});
        return absmax;
    }
    const float factor = 127.0f * (1.0f / absmax);
    for (int64_t k = 0; k < inputs; ++k)
        codes[k] = static_cast<Code>(std::nearbyint(row[k] * factor));
    return absmax / 127.0f;
}

template <class Code>
int32_t sum_of(const Code* codes, int64_t count) {
    int32_t sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += codes[k];
    return sum;
}

// One row's words, not yet interleaved with its block's; `values` has room for a row of float32.
template <class Code>
void quantized_words(const Layout& layout, int64_t row, float* values, Code* codes) {
    const int64_t inputs = layout.args.num_inputs;
    read_row(layout.args, row, values);
    const float scale = quantize(values, inputs, codes);
    layout.scales[row] = {scale, layout.method.weight_offset * sum_of(codes, inputs)};
}

void words_of_row(const Layout& layout, int64_t row, float* values, uint32_t* words) {
    const LinearArgs& args = layout.args;
    const int64_t padding = layout.words_per_row < 4 ? layout.words_per_row : 4;
    for (int64_t word = 1; word <= padding; ++word) words[layout.words_per_row - word] = 0;
    switch (layout.method.x) {
        case XFormat::float32:
            return read_row(args, row, reinterpret_cast<float*>(words));
        case XFormat::bfloat16_pairs: {
            const auto* from = static_cast<const BFloat16*>(args.x) + row * args.num_inputs;
            std::memcpy(words, from, static_cast<size_t>(args.num_inputs) * sizeof *from);
            return;
        }
        case XFormat::int8_quads:
            return quantized_words(layout, row, values, reinterpret_cast<int8_t*>(words));
        case XFormat::int16_pairs:
            return quantized_words(layout, row, values, reinterpret_cast<int16_t*>(words));
    }
}

// Sums of a row's codes over each group.
void group_sums(const Layout& layout, const uint32_t* words, int rows, float* to) {
    const auto* codes = reinterpret_cast<const int8_t*>(words);
    for (int64_t group = 0; group < layout.groups; ++group)
        to[group * rows] = static_cast<float>(
            sum_of(codes + group * layout.args.group_size, layout.args.group_size));
}

void lay_out_block(const Layout& layout, int64_t block) {
    thread_local Scratch memory;
    const int64_t words_per_row = layout.words_per_row;
    const int64_t values_bytes = padded(layout.args.num_inputs, 16) * 4;
    auto* values = memory.get<float>(static_cast<size_t>(values_bytes + words_per_row * 4));
    auto* single = reinterpret_cast<uint32_t*>(values + values_bytes / 4);
    const int64_t begin = layout.blocks.begin(block);
    const int rows = layout.blocks.rows(block);
    uint32_t* to = layout.words + begin * words_per_row;
    for (int row = 0; row < rows; ++row) {
        uint32_t* words = rows == 1 ? to : single;
        words_of_row(layout, begin + row, values, words);
        if (layout.groups != 0)
            group_sums(layout, words, rows, layout.sums + begin * layout.groups + row);
        if (rows == 1) continue;
        for (int64_t word = 0; word < words_per_row; ++word) to[word * rows + row] = words[word];
    }
}

}  // namespace

Activations lay_out(const LinearArgs& args, const Method& method, const RowBlocks& blocks) {
    thread_local Scratch memory;
    const int64_t steps =
        padded(args.num_inputs, inputs_per_step(method.weights)) / inputs_per_step(method.weights);
    const int64_t words_per_row = steps * method.words_per_step;
    const int64_t groups =
        method.x == XFormat::int8_quads && method.weights == WeightFormat::int4
            ? args.num_inputs / args.group_size
            : 0;
    const int64_t row_bytes =
        words_per_row * 4 + static_cast<int64_t>(sizeof(RowScale)) + groups * 4;
    auto* words = memory.get<uint32_t>(static_cast<size_t>(args.num_rows * row_bytes));
    auto* scales = reinterpret_cast<RowScale*>(words + args.num_rows * words_per_row);
    auto* sums = reinterpret_cast<float*>(scales + args.num_rows);
    const Layout layout{args, method, blocks, words_per_row, groups, words, scales, sums};
    const int64_t block_inputs = kMaxRows * args.num_inputs;
    const int64_t together = block_inputs >= kChunkInputs ? 1 : kChunkInputs / block_inputs;
    parallel_for((blocks.count + together - 1) / together, [&](int64_t chunk) {
        const int64_t end = (chunk + 1) * together;
        for (int64_t block = chunk * together; block < end && block < blocks.count; ++block)
            lay_out_block(layout, block);
    });
    return {words, words_per_row, scales, sums, groups};
}

}  // namespace trunkline
