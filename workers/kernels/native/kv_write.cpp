// What happens to heads between their projection and attention: norm, rotation, and for keys and
// values the way into the paged cache.
#include "attention.h"
#include "pool.h"
#include "vec.h"

#include <algorithm>
#include <cmath>

namespace trunkline {
namespace {

struct WriteHeadsArgs {
    const AttentionBatch* batch;
    void* qkv;                 // [rows, num_heads + 2 * num_kv_heads, head_dim]
    const int64_t* positions;  // [rows]
    const void* rotation;      // [max_len, head_dim]: cosines, then sines
    const void* norm;          // [num_heads + num_kv_heads, head_dim], or null
    void* keys;                // [slots, num_kv_heads, head_dim]
    void* values;
    float* key_scales;         // [slots, num_kv_heads], or null
    float* value_scales;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    float eps;
    DType dtype;
    DType cache_dtype;
};

template <class From, class To>
void convert(const From* from, To* to, int64_t size) {
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) store(to + i, load(from + i));
    for (; i < size; ++i) store_float(to + i, to_float(from[i]));
}

template <class T>
void normalise(float* head, const T* weight, int64_t size, float eps) {
    F32 squares = zero();
    float tail = 0.0f;
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) squares = fma(load(head + i), load(head + i), squares);
    for (; i < size; ++i) tail += head[i] * head[i];
    const float scale = 1.0f / std::sqrt((sum(squares) + tail) / static_cast<float>(size) + eps);
    const F32 scales = set1(scale);
    for (i = 0; i + kWidth <= size; i += kWidth)
        store(head + i, load(head + i) * scales * load(weight + i));
    for (; i < size; ++i) head[i] = head[i] * scale * to_float(weight[i]);
}

// Turns each pair (i, i + size / 2).
template <class T>
void rotate(float* head, const T* cos, int64_t size) {
    const int64_t half = size / 2;
    const T* sin = cos + half;
    int64_t i = 0;
    for (; i + kWidth <= half; i += kWidth) {
        const F32 a = load(head + i), b = load(head + half + i), c = load(cos + i), s = load(sin + i);
        store(head + i, a * c - b * s);
        store(head + half + i, b * c + a * s);
    }
    for (; i < half; ++i) {
        const float a = head[i], b = head[half + i], c = to_float(cos[i]), s = to_float(sin[i]);
        head[i] = a * c - b * s;
        head[half + i] = b * c + a * s;
    }
}

template <class T>
void put(const float* head, T* to, float*, int64_t size) {
    convert(head, to, size);
}

// As int8, the largest magnitude as 127. The scale of a head that is not finite is NaN.
void put(const float* head, int8_t* to, float* scale, int64_t size) {
    const float largest = largest_magnitude(head, size);
    *scale = largest / 127.0f;
    if (!(largest > 0.0f)) {
        std::fill(to, to + size, int8_t{0});
        return;
    }
    const float inverse = 127.0f / largest;
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) store(to + i, load(head + i) * set1(inverse));
    for (; i < size; ++i) to[i] = static_cast<int8_t>(std::nearbyint(head[i] * inverse));
}

// The same in steps, for ranks that exchange heads in between.
struct RotateHeadsArgs {
    void* qkv;                 // [num_rows, num_heads + 2 * num_kv_heads, head_dim]
    const int64_t* positions;  // [num_rows]
    const void* rotation;      // as above
    const void* norm;
    int64_t num_rows;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    float eps;
    DType dtype;
};

struct WriteTokensArgs {
    const AttentionBatch* batch;
    const void* qkv;           // [rows, num_heads + 2 * num_kv_heads, head_dim]
    void* keys;                // as above
    void* values;
    float* key_scales;
    float* value_scales;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    DType dtype;
    DType cache_dtype;
};

template <class T, class Cache>
void write_row(const WriteHeadsArgs& args, int64_t row) {
    alignas(64) float head[kMaxHeadDim];
    const int64_t size = args.head_dim, num_rotated = args.num_heads + args.num_kv_heads;
    T* heads = static_cast<T*>(args.qkv) + row * (num_rotated + args.num_kv_heads) * size;
    const T* cos = static_cast<const T*>(args.rotation) + args.positions[row] * size;
    const int64_t slot = args.batch->slots[row];
    for (int64_t index = 0; index < num_rotated + args.num_kv_heads; ++index) {
        convert(heads + index * size, head, size);
        if (index < num_rotated) {
            if (args.norm)
                normalise(head, static_cast<const T*>(args.norm) + index * size, size, args.eps);
            rotate(head, cos, size);
        }
        if (index < args.num_heads) {
            convert(head, heads + index * size, size);
            continue;
        }
        const bool is_key = index < num_rotated;
        const int64_t at = slot * args.num_kv_heads + index - (is_key ? args.num_heads : num_rotated);
        float* scales = is_key ? args.key_scales : args.value_scales;
        put(head, static_cast<Cache*>(is_key ? args.keys : args.values) + at * size,
            scales ? scales + at : nullptr, size);
    }
}

template <class T>
void rotate_row(const RotateHeadsArgs& args, int64_t row) {
    alignas(64) float head[kMaxHeadDim];
    const int64_t size = args.head_dim, num_rotated = args.num_heads + args.num_kv_heads;
    T* heads = static_cast<T*>(args.qkv) + row * (num_rotated + args.num_kv_heads) * size;
    const T* cos = static_cast<const T*>(args.rotation) + args.positions[row] * size;
    for (int64_t index = 0; index < num_rotated; ++index) {
        convert(heads + index * size, head, size);
        if (args.norm) normalise(head, static_cast<const T*>(args.norm) + index * size, size, args.eps);
        rotate(head, cos, size);
        convert(head, heads + index * size, size);
    }
}

template <class T, class Cache>
void write_token(const WriteTokensArgs& args, int64_t row) {
    alignas(64) float head[kMaxHeadDim];
    const int64_t size = args.head_dim, num_kv_heads = args.num_kv_heads;
    const T* keys = static_cast<const T*>(args.qkv) +
                    (row * (args.num_heads + 2 * num_kv_heads) + args.num_heads) * size;
    const T* values = keys + num_kv_heads * size;
    for (int64_t index = 0; index < num_kv_heads; ++index) {
        const int64_t at = args.batch->slots[row] * num_kv_heads + index;
        convert(keys + index * size, head, size);
        put(head, static_cast<Cache*>(args.keys) + at * size,
            args.key_scales ? args.key_scales + at : nullptr, size);
        convert(values + index * size, head, size);
        put(head, static_cast<Cache*>(args.values) + at * size,
            args.value_scales ? args.value_scales + at : nullptr, size);
    }
}

// Calls body(row) for all rows, some `width` elements each.
template <class Body>
void for_rows(int64_t num_rows, int64_t width, Body&& body) {
    const int64_t step = width >= 16384 ? 1 : 16384 / width;
    parallel_for((num_rows + step - 1) / step, [&](int64_t chunk) {
        const int64_t end = (chunk + 1) * step < num_rows ? (chunk + 1) * step : num_rows;
        for (int64_t row = chunk * step; row < end; ++row) body(row);
    });
}

template <class T, class Cache>
void write_heads(const WriteHeadsArgs& args) {
    const int64_t width = (args.num_heads + 2 * args.num_kv_heads) * args.head_dim;
    for_rows(args.batch->num_rows, width, [&](int64_t row) {
        if (args.batch->slots[row] >= 0) write_row<T, Cache>(args, row);
    });
}

template <class T>
void rotate_heads(const RotateHeadsArgs& args) {
    const int64_t width = (args.num_heads + args.num_kv_heads) * args.head_dim;
    for_rows(args.num_rows, width, [&](int64_t row) { rotate_row<T>(args, row); });
}

template <class T, class Cache>
void write_tokens(const WriteTokensArgs& args) {
    for_rows(args.batch->num_rows, 2 * args.num_kv_heads * args.head_dim, [&](int64_t row) {
        if (args.batch->slots[row] >= 0) write_token<T, Cache>(args, row);
    });
}

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(write_heads, trunkline::WriteHeadsArgs) {
    using trunkline::BFloat16, trunkline::DType;
    const bool is_int8 = args->cache_dtype == DType::int8;
    if (args->dtype == DType::float32)
        (is_int8 ? trunkline::write_heads<float, int8_t> : trunkline::write_heads<float, float>)(*args);
    else
        (is_int8 ? trunkline::write_heads<BFloat16, int8_t>
                 : trunkline::write_heads<BFloat16, BFloat16>)(*args);
}

TRUNKLINE_KERNEL(rotate_heads, trunkline::RotateHeadsArgs) {
    using trunkline::BFloat16, trunkline::DType;
    (args->dtype == DType::float32 ? trunkline::rotate_heads<float>
                                   : trunkline::rotate_heads<BFloat16>)(*args);
}

TRUNKLINE_KERNEL(write_tokens, trunkline::WriteTokensArgs) {
    using trunkline::BFloat16, trunkline::DType;
    const bool is_int8 = args->cache_dtype == DType::int8;
    if (args->dtype == DType::float32)
        (is_int8 ? trunkline::write_tokens<float, int8_t> : trunkline::write_tokens<float, float>)(*args);
    else
        (is_int8 ? trunkline::write_tokens<BFloat16, int8_t>
                 : trunkline::write_tokens<BFloat16, BFloat16>)(*args);
}
