// Attention of many queries of one sequence: products of small matrices.
//
// Some positions' query heads that share a kv head are the rows of a tile, which meets the keys and
// values of kKeys positions at a time, widened to float32. Softmax is kept up to date as the tiles of
// keys go by (Milakov and Gimelshein, 2018; FlashAttention-2, Dao, 2023). Tiles of keys start at
// multiples of kKeys whatever the chunk, so that a row's result does not depend on how its prompt was
// cut.
#pragma once

#include <algorithm>
#include <cmath>

#include "attention.h"
#include "scratch.h"

namespace trunkline {

constexpr int64_t kKeys = 64;
constexpr int64_t kRows = 96;                             // of a tile, at most
constexpr int kRegisterRows = kWidth == 16 ? 12 : 6;  // of a product held in registers

static_assert(kKeys % kPair == 0 && kRows % kRegisterRows == 0);

// Positions of a tile of queries.
inline int64_t queries_per_tile(int64_t group) { return std::max<int64_t>(1, kRows / group); }

// c [M, kPair] (+)= a [M, depth] @ b [depth, kPair]; b has no gaps.
template <int M, bool adds>
void multiply_panel(
    const float* a, int64_t a_stride, const float* b, int64_t depth, float* c, int64_t c_stride) {
    F32 low[M], high[M];
    for (int m = 0; m < M; ++m) {
        low[m] = adds ? load(c + m * c_stride) : zero();
        high[m] = adds ? load(c + m * c_stride + kWidth) : zero();
    }
    for (int64_t k = 0; k < depth; ++k) {
        const F32 first = load(b + k * kPair), second = load(b + k * kPair + kWidth);
        for (int m = 0; m < M; ++m) {
            const F32 factor = set1(a[m * a_stride + k]);
            low[m] = fma(factor, first, low[m]);
            high[m] = fma(factor, second, high[m]);
        }
    }
    for (int m = 0; m < M; ++m) {
        store(c + m * c_stride, low[m]);
        store(c + m * c_stride + kWidth, high[m]);
    }
}

// c [rows, columns] (+)= a [rows, depth] @ b, which is [columns / kPair, depth, kPair]. `rows` is a
// multiple of kRegisterRows.
template <bool adds>
void multiply(
    const float* a, int64_t a_stride, const float* b, int64_t rows, int64_t columns, int64_t depth,
    int64_t b_depth, float* c, int64_t c_stride) {
    for (int64_t column = 0; column < columns; column += kPair)
        for (int64_t row = 0; row < rows; row += kRegisterRows)
            multiply_panel<kRegisterRows, adds>(
                a + row * a_stride, a_stride, b + column * b_depth, depth,
                c + row * c_stride + column, c_stride);
}

template <class T, class Cache>
class ExtendTile {
public:
    // Queries at rows `first` up to `last` of a sequence's own, of one kv head.
    ExtendTile(const AttendArgs& args, int64_t sequence, int64_t kv_head, int64_t first, int64_t last)
        : args_(args),
          sequence_(sequence),
          kv_head_(kv_head),
          group_(args.num_heads / args.num_kv_heads),
          num_rows_((last - first) * group_),
          padded_rows_(round_up(num_rows_, kRegisterRows)),
          width_(round_up(args.head_dim, kPair)),
          first_row_(args.batch->query_starts[sequence] + first) {
        const int64_t num_queries =
            args.batch->query_starts[sequence + 1] - args.batch->query_starts[sequence];
        const int64_t position = args.batch->context_lens[sequence] - num_queries + first;
        for (int64_t query = 0; query < last - first; ++query) {
            begins_[query] = slots_before(args, sequence, position + query - args.window + 1);
            ends_[query] = slots_before(args, sequence, position + query + 1);
        }
        end_ = ends_[last - first - 1];
        reserve();
    }

    void run() {
        load_queries();
        for (int64_t start = begins_[0] / kKeys * kKeys; start < end_; start += kKeys) {
            const int64_t size = std::min(kKeys, end_ - start);
            load_keys_and_values(start, size);
            multiply<false>(
                query_, args_.head_dim, keys_, padded_rows_, round_up(size, kPair), args_.head_dim,
                args_.head_dim, scores_, kKeys);
            for (int64_t row = 0; row < num_rows_; ++row) soften(row, start, size);
            multiply<true>(scores_, kKeys, values_, padded_rows_, width_, size, kKeys, sums_, width_);
        }
        for (int64_t row = 0; row < num_rows_; ++row) finish(row);
    }

private:
    void reserve() {
        static thread_local Scratch scratch;
        const int64_t size = args_.head_dim, rows = padded_rows_;
        const int64_t floats = rows * (size + kKeys + width_ + 2) + kKeys * (size + width_ + 2);
        query_ = scratch.get<float>((floats + 8 * kWidth) * sizeof(float));
        float* end = query_ + round_up(rows * size, kWidth);
        const auto take = [&](int64_t count) {
            float* start = end;
            end += round_up(count, kWidth);
            return start;
        };
        scores_ = take(rows * kKeys);
        sums_ = take(rows * width_);
        totals_ = take(rows);
        peaks_ = take(rows);
        keys_ = take(kKeys * size);
        values_ = take(kKeys * width_);
        key_scales_ = take(kKeys);
        value_scales_ = take(kKeys);
    }

    int64_t head_of(int64_t row) const { return kv_head_ * group_ + row % group_; }

    // Rows past the last are zero, so that what is computed of them stays finite.
    void load_queries() {
        const int64_t size = args_.head_dim, num_all = args_.num_heads + 2 * args_.num_kv_heads;
        for (int64_t row = 0; row < num_rows_; ++row) {
            const T* from = static_cast<const T*>(args_.qkv) +
                            ((first_row_ + row / group_) * num_all + head_of(row)) * size;
            for (int64_t i = 0; i < size; ++i) query_[row * size + i] = to_float(from[i]) * args_.scale;
        }
        std::fill(query_ + num_rows_ * size, query_ + padded_rows_ * size, 0.0f);
        std::fill(scores_, scores_ + padded_rows_ * kKeys, 0.0f);
        std::fill(sums_, sums_ + padded_rows_ * width_, 0.0f);
        std::fill(totals_, totals_ + num_rows_, 0.0f);
        std::fill(peaks_, peaks_ + num_rows_, kNoMaximum);
    }

    void load_keys_and_values(int64_t start, int64_t size) {
        find_slots(args_, sequence_, start, size, slots_);
        for (int64_t i = 0; i < round_up(size, kPair); i += kWidth) load_keys(i, size);
        for (int64_t i = 0; i < size; ++i) load_value(i);
        if (args_.key_scales) {
            gather_scales(args_, args_.key_scales, kv_head_, slots_, size, key_scales_);
            gather_scales(args_, args_.value_scales, kv_head_, slots_, size, value_scales_);
        }
    }

    const Cache* head_at(const void* store, int64_t index) const {
        const int64_t at = slots_[index] * args_.num_kv_heads + kv_head_;
        return static_cast<const Cache*>(store) + at * args_.head_dim;
    }

    // Transposed: keys_ is [kKeys / kPair, head_dim, kPair]. kWidth keys from `first` on; zeros from
    // `size` on.
    void load_keys(int64_t first, int64_t size) {
        float* to = keys_ + first / kPair * kPair * args_.head_dim + first % kPair;
        const int64_t count = std::clamp<int64_t>(size - first, 0, kWidth);
        int64_t d = 0;
        for (; d + kWidth <= args_.head_dim; d += kWidth) {
            F32 rows[kWidth];
            for (int64_t i = 0; i < kWidth; ++i)
                rows[i] = i < count ? load(head_at(args_.keys, first + i) + d) : zero();
            transpose(rows);
            for (int64_t i = 0; i < kWidth; ++i) store(to + (d + i) * kPair, rows[i]);
        }
        for (; d < args_.head_dim; ++d)
            for (int64_t i = 0; i < kWidth; ++i)
                to[d * kPair + i] = i < count ? to_float(head_at(args_.keys, first + i)[d]) : 0.0f;
    }

    // values_ is [width / kPair, kKeys, kPair].
    void load_value(int64_t index) {
        const Cache* from = head_at(args_.values, index);
        for (int64_t d = 0; d < width_; d += kWidth) {
            float* to = values_ + d / kPair * kPair * kKeys + index * kPair + d % kPair;
            if (d + kWidth <= args_.head_dim) {
                store(to, load(from + d));
                continue;
            }
            for (int64_t i = 0; i < kWidth; ++i)
                to[i] = d + i < args_.head_dim ? to_float(from[d + i]) : 0.0f;
        }
    }

    // A row's scores to weights against its largest score so far, which what it has summed follows.
    void soften(int64_t row, int64_t start, int64_t size) {
        float* scores = scores_ + row * kKeys;
        const int64_t query = row / group_, padded = round_up(size, kWidth);
        const int64_t first = std::clamp<int64_t>(begins_[query] - start, 0, padded);
        const int64_t last = std::clamp<int64_t>(ends_[query] - start, 0, padded);
        if (args_.key_scales)
            for (int64_t i = 0; i < padded; i += kWidth)
                store(scores + i, load(scores + i) * load(key_scales_ + i));
        std::fill(scores, scores + first, -INFINITY);
        std::fill(scores + std::max(first, last), scores + padded, -INFINITY);
        F32 highest = load(scores);
        for (int64_t i = kWidth; i < padded; i += kWidth) highest = max(highest, load(scores + i));
        const float peak = std::max(peaks_[row], max_of(highest));
        F32 totals = zero();
        for (int64_t i = 0; i < padded; i += kWidth) {
            const F32 weight = exp(load(scores + i) - set1(peak));
            totals = totals + weight;
            store(scores + i, args_.value_scales ? weight * load(value_scales_ + i) : weight);
        }
        if (peak != peaks_[row]) {
            const F32 shrink = exp(set1(peaks_[row] - peak));
            float* sums = sums_ + row * width_;
            for (int64_t d = 0; d < width_; d += kWidth) store(sums + d, load(sums + d) * shrink);
            float factors[kWidth];
            store(factors, shrink);
            totals_[row] *= factors[0];
            peaks_[row] = peak;
        }
        totals_[row] += sum(totals);
    }

    void finish(int64_t row) {
        if (args_.partial) {
            store_partial(
                args_, first_row_ + row / group_, head_of(row), sums_ + row * width_, totals_[row],
                peaks_[row]);
            return;
        }
        const int64_t size = args_.head_dim;
        T* to = static_cast<T*>(args_.out) +
                ((first_row_ + row / group_) * args_.num_heads + head_of(row)) * size;
        const float* sums = sums_ + row * width_;
        const float factor = 1.0f / totals_[row];
        int64_t d = 0;
        for (; d + kWidth <= size; d += kWidth) store(to + d, load(sums + d) * set1(factor));
        for (; d < size; ++d) store_float(to + d, sums[d] * factor);
    }

    const AttendArgs& args_;
    const int64_t sequence_;
    const int64_t kv_head_;
    const int64_t group_;
    const int64_t num_rows_;  // positions times query heads
    const int64_t padded_rows_;
    const int64_t width_;  // of a head, padded
    const int64_t first_row_;
    int64_t begins_[kRows];  // of what each query sees, in slots of the table
    int64_t ends_[kRows];
    int64_t end_;
    int64_t slots_[kKeys];
    float* query_;   // [padded_rows, head_dim]
    float* scores_;  // [padded_rows, kKeys]
    float* sums_;    // [padded_rows, width]
    float* totals_;  // [padded_rows]
    float* peaks_;   // [padded_rows]
    float* keys_;
    float* values_;
    float* key_scales_;    // [kKeys]
    float* value_scales_;  // [kKeys]
};

}  // namespace trunkline
