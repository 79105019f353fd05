// Row-wise kernels that fuse what would otherwise be several passes over the activations.
#include "kernel.h"
#include "pool.h"
#include "vec.h"

#include <algorithm>
#include <cmath>

namespace trunkline {
namespace {

constexpr int64_t kPair = 2 * kWidth;

// Bytes that a thread reads in some 10 microseconds: what is less than two such chunks is over
// before a second thread has woken up.
constexpr int64_t kChunkBytes = 128 * 1024;

template <class Body>
void for_rows(int64_t num_rows, int64_t row_bytes, Body&& body) {
    const int64_t num_chunks = std::clamp<int64_t>(num_rows * row_bytes / kChunkBytes, 1, num_rows);
    parallel_for(num_chunks, [&](int64_t chunk) {
        const int64_t end = num_rows * (chunk + 1) / num_chunks;
        for (int64_t row = num_rows * chunk / num_chunks; row < end; ++row) body(row);
    });
}

// Fewer elements than a pair holds, with zeros after them.
template <class T>
struct Padded {
    T data[kPair] = {};

    Padded(const T* from, int64_t count) { std::copy_n(from, count, data); }
};

struct AddRmsNormArgs {
    void* residual;
    const void* delta;  // may be null
    const void* weight;
    void* out;
    int64_t num_rows;
    int64_t width;
    float eps;
    DType dtype;
};

// Adds, and returns the square of the sum as it was rounded: what the next layer will see.
template <class T>
Pair add_and_square(T* residual, const T* delta) {
    const Pair sum = delta ? store_pair(residual, load_pair(residual) + load_pair(delta))
                           : load_pair(residual);
    return sum * sum;
}

template <class T>
void add_rms_norm_row(T* residual, const T* delta, const T* weight, T* out, int64_t width, float eps) {
    const int64_t whole = width - width % kPair, rest = width - whole;
    Pair squares{zero(), zero()};
    for (int64_t i = 0; i < whole; i += kPair)
        squares = squares + add_and_square(residual + i, delta ? delta + i : nullptr);
    if (rest) {
        Padded<T> last(residual + whole, rest);
        if (delta)
            squares = squares + add_and_square(last.data, Padded<T>(delta + whole, rest).data);
        else
            squares = squares + add_and_square<T>(last.data, nullptr);
        std::copy_n(last.data, rest, residual + whole);
    }
    const float mean = sum(squares.first + squares.second) / static_cast<float>(width);
    const F32 scale = set1(1.0f / std::sqrt(mean + eps));
    for (int64_t i = 0; i < whole; i += kPair)
        store_pair(out + i, load_pair(residual + i) * scale * load_pair(weight + i));
    if (rest) {
        Padded<T> last(residual + whole, rest);
        const Padded<T> weights(weight + whole, rest);
        store_pair(last.data, load_pair(last.data) * scale * load_pair(weights.data));
        std::copy_n(last.data, rest, out + whole);
    }
}

template <class T>
void add_rms_norm(const AddRmsNormArgs& args) {
    const auto residual = static_cast<T*>(args.residual), out = static_cast<T*>(args.out);
    const auto delta = static_cast<const T*>(args.delta), weight = static_cast<const T*>(args.weight);
    for_rows(args.num_rows, 2 * args.width * sizeof(T), [&](int64_t row) {
        const int64_t at = row * args.width;
        add_rms_norm_row(
            residual + at, delta ? delta + at : nullptr, weight, out + at, args.width, args.eps);
    });
}

struct SiluMulArgs {
    const void* gate_up;
    void* out;
    int64_t num_rows;
    int64_t width;  // of out
    DType dtype;
};

inline F32 silu(F32 x) {
    return div(x, set1(1.0f) + exp(min(set1(0.0f) - x, set1(88.0f))));
}

template <class T>
void silu_mul_pair(const T* gate, const T* up, T* out) {
    const Pair x = load_pair(gate);
    store_pair(out, Pair{silu(x.first), silu(x.second)} * load_pair(up));
}

template <class T>
void silu_mul(const SiluMulArgs& args) {
    // The exponential takes as long as reading some eight elements.
    for_rows(args.num_rows, 8 * args.width * sizeof(T), [&](int64_t row) {
        const T* gate = static_cast<const T*>(args.gate_up) + row * 2 * args.width;
        const T* up = gate + args.width;
        T* out = static_cast<T*>(args.out) + row * args.width;
        const int64_t whole = args.width - args.width % kPair, rest = args.width - whole;
        for (int64_t i = 0; i < whole; i += kPair) silu_mul_pair(gate + i, up + i, out + i);
        if (rest) {
            Padded<T> last(gate + whole, rest);
            silu_mul_pair(last.data, Padded<T>(up + whole, rest).data, last.data);
            std::copy_n(last.data, rest, out + whole);
        }
    });
}

struct GatherRowsArgs {
    const void* table;
    const int64_t* rows;
    void* out;
    int64_t num_rows;
    int64_t row_bytes;
    int64_t first_row;  // the number of the table's first row
    int64_t table_rows;
};

struct AddRowsArgs {
    void* x;
    const void* y;
    int64_t num_rows;
    int64_t width;
    DType dtype;
};

template <class T>
void add_rows(const AddRowsArgs& args) {
    for_rows(args.num_rows, 2 * args.width * sizeof(T), [&](int64_t row) {
        T* x = static_cast<T*>(args.x) + row * args.width;
        const T* y = static_cast<const T*>(args.y) + row * args.width;
        const int64_t whole = args.width - args.width % kPair, rest = args.width - whole;
        for (int64_t i = 0; i < whole; i += kPair)
            store_pair(x + i, load_pair(x + i) + load_pair(y + i));
        if (rest) {
            Padded<T> last(x + whole, rest);
            store_pair(last.data, load_pair(last.data) + load_pair(Padded<T>(y + whole, rest).data));
            std::copy_n(last.data, rest, x + whole);
        }
    });
}

struct AreFiniteArgs {
    const void* x;
    bool* out;
    int64_t num_rows;
    int64_t width;
    DType dtype;
};

// NaN and infinities times zero are NaN, which no sum gets rid of.
template <class T>
bool is_finite(const T* x, int64_t width) {
    const int64_t whole = width - width % kPair;
    F32 first = zero(), second = zero();
    for (int64_t i = 0; i < whole; i += kPair) {
        const Pair values = load_pair(x + i);
        first = fma(values.first, zero(), first);
        second = fma(values.second, zero(), second);
    }
    if (whole < width) {
        const Pair values = load_pair(Padded<T>(x + whole, width - whole).data);
        first = fma(values.first, zero(), first);
        second = fma(values.second, zero(), second);
    }
    return sum(first + second) == 0.0f;
}

template <class T>
void are_finite(const AreFiniteArgs& args) {
    for_rows(args.num_rows, args.width * sizeof(T), [&](int64_t row) {
        args.out[row] = is_finite(static_cast<const T*>(args.x) + row * args.width, args.width);
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

TRUNKLINE_KERNEL(silu_mul, trunkline::SiluMulArgs) {
    if (args->dtype == trunkline::DType::float32)
        trunkline::silu_mul<float>(*args);
    else
        trunkline::silu_mul<trunkline::BFloat16>(*args);
}

TRUNKLINE_KERNEL(gather_rows, trunkline::GatherRowsArgs) {
    trunkline::for_rows(args->num_rows, args->row_bytes, [&](int64_t row) {
        char* out = static_cast<char*>(args->out) + row * args->row_bytes;
        const int64_t from = args->rows[row] - args->first_row;
        if (0 <= from && from < args->table_rows)
            std::memcpy(
                out, static_cast<const char*>(args->table) + from * args->row_bytes, args->row_bytes);
        else
            std::memset(out, 0, args->row_bytes);
    });
}

TRUNKLINE_KERNEL(add_rows, trunkline::AddRowsArgs) {
    if (args->dtype == trunkline::DType::float32)
        trunkline::add_rows<float>(*args);
    else
        trunkline::add_rows<trunkline::BFloat16>(*args);
}

TRUNKLINE_KERNEL(are_finite, trunkline::AreFiniteArgs) {
    if (args->dtype == trunkline::DType::float32)
        trunkline::are_finite<float>(*args);
    else
        trunkline::are_finite<trunkline::BFloat16>(*args);
}
