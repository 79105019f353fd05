// Row-wise kernels that fuse what would otherwise be several passes over the activations.
#include "kernel.h"
#include "pool.h"
#include "vec.h"

#include <cmath>

namespace trunkline {
namespace {

// Rows that are worth a chunk of their own: some microseconds of work.
int64_t rows_per_chunk(int64_t width) { return width >= 8192 ? 1 : 8192 / width; }

template <class Body>
void for_rows(int64_t num_rows, int64_t width, Body&& body) {
    const int64_t step = rows_per_chunk(width);
    parallel_for((num_rows + step - 1) / step, [&](int64_t chunk) {
        const int64_t end = (chunk + 1) * step < num_rows ? (chunk + 1) * step : num_rows;
        for (int64_t row = chunk * step; row < end; ++row) body(row);
    });
}

struct AddRmsNormArgs {
    void* residual;
    const void* delta;
    const void* weight;
    void* out;
    int64_t num_rows;
    int64_t width;
    float eps;
    DType dtype;
};

template <class T>
void add_rms_norm_row(T* residual, const T* delta, const T* weight, T* out, int64_t width, float eps) {
    F32 squares = zero();
    float tail = 0.0f;
    int64_t i = 0;
    for (; i + kWidth <= width; i += kWidth) {
        store(residual + i, load(residual + i) + load(delta + i));
        const F32 sum = load(residual + i);  // as rounded: what the next layer will see
        squares = fma(sum, sum, squares);
    }
    for (; i < width; ++i) {
        store_float(residual + i, to_float(residual[i]) + to_float(delta[i]));
        tail += to_float(residual[i]) * to_float(residual[i]);
    }
    const float scale = 1.0f / std::sqrt((sum(squares) + tail) / static_cast<float>(width) + eps);
    const F32 scales = set1(scale);
    for (i = 0; i + kWidth <= width; i += kWidth)
        store(out + i, load(residual + i) * scales * load(weight + i));
    for (; i < width; ++i) store_float(out + i, to_float(residual[i]) * scale * to_float(weight[i]));
}

template <class T>
void add_rms_norm(const AddRmsNormArgs& args) {
    for_rows(args.num_rows, args.width, [&](int64_t row) {
        const int64_t at = row * args.width;
        add_rms_norm_row(
            static_cast<T*>(args.residual) + at, static_cast<const T*>(args.delta) + at,
            static_cast<const T*>(args.weight), static_cast<T*>(args.out) + at, args.width, args.eps);
    });
}

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(add_rms_norm, trunkline::AddRmsNormArgs) {
    if (args->dtype == trunkline::DType::float32)
        trunkline::add_rms_norm<float>(*args);
    else
        trunkline::add_rms_norm<trunkline::BFloat16>(*args);
}
