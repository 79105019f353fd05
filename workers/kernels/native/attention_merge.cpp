// Attention over all positions, of what ranks have of a part each.
#include "attention.h"
#include "pool.h"

#include <algorithm>
#include <cmath>

namespace trunkline {
namespace {

struct MergePartialsArgs {
    const float* parts;  // [num_parts, num_rows, num_heads * (head_dim + 1)], see store_partial
    void* out;           // [num_rows, num_heads * head_dim]
    int64_t num_parts;
    int64_t num_rows;
    int64_t num_heads;
    int64_t head_dim;
    DType dtype;
};

// Each part counts as much as its share of the softmax's denominator (Flash-Decoding, Dao et al.,
// 2023). A query that sees nothing in any part gets zeros.
template <class T>
void merge_row(const MergePartialsArgs& args, int64_t row) {
    const int64_t size = args.head_dim, results = args.num_heads * size;
    const int64_t width = results + args.num_heads;
    const auto part = [&](int64_t index) {
        return args.parts + (index * args.num_rows + row) * width;
    };
    for (int64_t head = 0; head < args.num_heads; ++head) {
        float largest = kNoMaximum;
        for (int64_t i = 0; i < args.num_parts; ++i)
            largest = std::max(largest, part(i)[results + head]);
        float total = 0.0f;
        for (int64_t i = 0; i < args.num_parts; ++i)
            total += std::exp(part(i)[results + head] - largest);
        alignas(64) float sums[kMaxHeadDim] = {};
        for (int64_t i = 0; total != 0.0f && i < args.num_parts; ++i) {
            const float weight = std::exp(part(i)[results + head] - largest) / total;
            const float* from = part(i) + head * size;
            int64_t d = 0;
            for (; d + kWidth <= size; d += kWidth)
                store(sums + d, fma(set1(weight), load(from + d), load(sums + d)));
            for (; d < size; ++d) sums[d] += weight * from[d];
        }
        T* to = static_cast<T*>(args.out) + row * results + head * size;
        for (int64_t d = 0; d < size; ++d) store_float(to + d, sums[d]);
    }
}

template <class T>
void merge_partials(const MergePartialsArgs& args) {
    const int64_t width = args.num_parts * args.num_heads * args.head_dim;
    const int64_t step = std::max<int64_t>(1, 16384 / width);
    parallel_for((args.num_rows + step - 1) / step, [&](int64_t chunk) {
        const int64_t end = std::min(args.num_rows, (chunk + 1) * step);
        for (int64_t row = chunk * step; row < end; ++row) merge_row<T>(args, row);
    });
}

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(merge_partials, trunkline::MergePartialsArgs) {
    using trunkline::BFloat16, trunkline::DType;
    (args->dtype == DType::float32 ? trunkline::merge_partials<float>
                                   : trunkline::merge_partials<BFloat16>)(*args);
}
