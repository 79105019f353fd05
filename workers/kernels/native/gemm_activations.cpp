#include "gemm_activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "scratch.h"

namespace trunkline {
namespace {

constexpr int64_t kChunkInputs = 32768;

// Blocks of rows that are laid out together.
int64_t blocks_of_chunk(int64_t num_inputs) {
    return std::max<int64_t>(kChunkInputs / (kMaxRows * num_inputs), 1);
}

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

int64_t place_of(const LinearArgs& args, int64_t row) {
    return (args.rows == nullptr ? row : args.rows[row]) * args.num_inputs;
}

void read_row(const LinearArgs& args, int64_t row, float* to) {
    const int64_t at = place_of(args, row);
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

}  // namespace

ActivationLayout::ActivationLayout(const LinearArgs& args, const Method& method)
    : args_(args), method_(&method), blocks_(args.num_rows) {
    const int per_step = inputs_per_step(method.weights);
    x_.words_per_row = padded(args.num_inputs, per_step) / per_step * method.words_per_step;
    if (method.x == XFormat::int8_quads && method.weights == WeightFormat::int4)
        x_.groups = args.num_inputs / args.group_size;
}

int64_t ActivationLayout::bytes() const {
    const int64_t row_bytes =
        (x_.words_per_row + x_.groups) * 4 + static_cast<int64_t>(sizeof(RowScale));
    return padded(args_.num_rows * row_bytes, 64);
}

void ActivationLayout::place(void* memory) {
    x_.words = words_ = static_cast<uint32_t*>(memory);
    x_.scales = scales_ =
        reinterpret_cast<RowScale*>(words_ + args_.num_rows * x_.words_per_row);
    x_.sums = sums_ = reinterpret_cast<float*>(scales_ + args_.num_rows);
}

int64_t ActivationLayout::num_chunks() const {
    const int64_t together = blocks_of_chunk(args_.num_inputs);
    return (blocks_.count + together - 1) / together;
}

void ActivationLayout::fill(int64_t chunk) const {
    const int64_t together = blocks_of_chunk(args_.num_inputs);
    const int64_t end = std::min((chunk + 1) * together, blocks_.count);
    for (int64_t block = chunk * together; block < end; ++block) fill_block(block);
}

void ActivationLayout::fill_block(int64_t block) const {
    thread_local Scratch memory;
    const int64_t words_per_row = x_.words_per_row;
    const int64_t values_bytes = padded(args_.num_inputs, 16) * 4;
    auto* values = memory.get<float>(static_cast<size_t>(values_bytes + words_per_row * 4));
    auto* single = reinterpret_cast<uint32_t*>(values + values_bytes / 4);
    const int64_t begin = blocks_.begin(block);
    const int rows = blocks_.rows(block);
    uint32_t* to = words_ + begin * words_per_row;
    for (int row = 0; row < rows; ++row) {
        uint32_t* words = rows == 1 ? to : single;
        words_of_row(begin + row, values, words);
        if (x_.groups != 0) group_sums(words, rows, sums_ + begin * x_.groups + row);
        if (rows == 1) continue;
        for (int64_t word = 0; word < words_per_row; ++word) to[word * rows + row] = words[word];
    }
}

// One row's words, not yet interleaved with its block's; `values` has room for a row of float32.
void ActivationLayout::words_of_row(int64_t row, float* values, uint32_t* words) const {
    const int64_t padding = std::min<int64_t>(x_.words_per_row, 4);
    for (int64_t word = 1; word <= padding; ++word) words[x_.words_per_row - word] = 0;
    switch (method_->x) {
        case XFormat::float32:
            return read_row(args_, row, reinterpret_cast<float*>(words));
        case XFormat::bfloat16_pairs: {
            const auto* from = static_cast<const BFloat16*>(args_.x) + place_of(args_, row);
            std::memcpy(words, from, static_cast<size_t>(args_.num_inputs) * sizeof *from);
            return;
        }
        case XFormat::int8_quads:
            return quantized_words(row, values, reinterpret_cast<int8_t*>(words));
        case XFormat::int16_pairs:
            return quantized_words(row, values, reinterpret_cast<int16_t*>(words));
    }
}

template <class Code>
void ActivationLayout::quantized_words(int64_t row, float* values, Code* codes) const {
    const int64_t inputs = args_.num_inputs;
    read_row(args_, row, values);
    const float scale = quantize(values, inputs, codes);
    scales_[row] = {scale, method_->weight_offset * sum_of(codes, inputs)};
}

// Sums of a row's codes over each group.
void ActivationLayout::group_sums(const uint32_t* words, int rows, float* to) const {
    const auto* codes = reinterpret_cast<const int8_t*>(words);
    for (int64_t group = 0; group < x_.groups; ++group)
        to[group * rows] =
            static_cast<float>(sum_of(codes + group * args_.group_size, args_.group_size));
}

}  // namespace trunkline
