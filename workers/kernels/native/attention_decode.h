// Attention of single queries: the cache is read once, in long runs, and everything else must keep
// up with that.
//
// A sequence's positions are cut at multiples of kSplit into parts that any thread can do. A part
// computes the scores of all heads, their exponentials, and the weighted sum of the values. The query
// heads that share a kv head go together, so that each key and value is loaded once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "attention.h"
#include "scratch.h"

namespace trunkline {

constexpr int64_t kSplit = 256;  // positions of a part; a multiple of kTile
constexpr int64_t kTile = 16;    // positions whose keys or values stay in the first cache meanwhile
constexpr int kMaxSlice = 4;     // query heads that go together

// Some positions' elements of one kv head, in one of the types of a cache.
template <class T>
struct Tile {
    const T* base;
    const int64_t* offsets;  // [kTile], of each position's first element
    const T* next_base;      // of the tile that is wanted next, or null
    const int64_t* next_offsets;

    void fetch_next(int64_t position, int64_t element) const {
        __builtin_prefetch(next_base + next_offsets[position] + element, 0, 2);
    }
};

// Elements that come from memory together.
template <class T>
constexpr int64_t kLine = 64 / sizeof(T);

// Elements of a query or a result in the lanes in which load_pair has those of a cache's type.
template <class Cache, class T>
Pair load_in_lanes_of(const T* from) {
    if constexpr (std::is_same_v<Cache, BFloat16>) return load_pair(from);
    return {load(from), load(from + kWidth)};
}

template <class Cache, class T>
void store_from_lanes_of(T* to, Pair x) {
    if constexpr (std::is_same_v<Cache, BFloat16>) {
        store_pair(to, x);
    } else {
        store(to, x.first);
        store(to + kWidth, x.second);
    }
}

// Positions whose scores are summed up together: as many as have room in registers.
template <int G>
constexpr int kTogether = G == 1 ? 8 : G * 4 <= (kWidth == 8 ? 12 : 16) ? 4 : 2;

template <int G, int N>
[[gnu::always_inline]] inline void store_scores(const F32 (&sums)[G][N], float* scores) {
    for (int g = 0; g < G; g += N == 2 ? 2 : 1)
        for (int t = 0; t < N; t += 4)
            if constexpr (N == 2) {
                float four[4];
                store_sums(four, sums[g][0], sums[g][1], sums[g + 1][0], sums[g + 1][1]);
                std::memcpy(scores + g * kSplit, four, 2 * sizeof(float));
                std::memcpy(scores + (g + 1) * kSplit, four + 2, 2 * sizeof(float));
            } else {
                store_sums(
                    scores + g * kSplit + t, sums[g][t], sums[g][t + 1], sums[g][t + 2], sums[g][t + 3]);
            }
}

// Dot products of G query heads [G, width] with the keys of `size` positions, a multiple of 8, while
// the next keys are on their way: evenly, since a core keeps few reads under way and waits then.
template <int G, bool fetches, class T>
void score_slice(
    const float* query, int64_t width, const Tile<T>& keys, int64_t size, float* scores) {
    constexpr int kTokens = kTogether<G>;
    for (int64_t first = 0; first < size; first += kTokens) {
        if constexpr (fetches)
            for (int t = 0; t < kTokens; ++t)
                for (int64_t d = 0; d < width; d += kLine<T>) keys.fetch_next(first + t, d);
        F32 sums[G][kTokens];
        for (int g = 0; g < G; ++g)
            for (int t = 0; t < kTokens; ++t) sums[g][t] = zero();
        for (int64_t d = 0; d < width; d += kPair) {
            Pair query_pair[G];
            for (int g = 0; g < G; ++g) query_pair[g] = load_pair(query + g * width + d);
            for (int t = 0; t < kTokens; ++t) {
                const Pair key = load_pair(keys.base + keys.offsets[first + t] + d);
                for (int g = 0; g < G; ++g) sums[g][t] = fma(query_pair[g].first, key.first, sums[g][t]);
                for (int g = 0; g < G; ++g) sums[g][t] = fma(query_pair[g].second, key.second, sums[g][t]);
            }
        }
        store_scores(sums, scores + first);
    }
}

// Positions whose values are summed up apart, so that no sum waits for the one before.
template <int G>
constexpr int kApart = G == 1 ? 4 : G <= 3 ? 2 : 1;

// Adds G weighted sums of the values of `size` positions to sums [G, width]; kPair elements.
template <int G, bool fetches, class T>
void weigh_columns(
    const float* weights, const Tile<T>& values, int64_t first, int64_t size, float* sums,
    int64_t width) {
    Pair apart[kApart<G>][G];
    for (int u = 0; u < kApart<G>; ++u)
        for (int g = 0; g < G; ++g)
            apart[u][g] = u == 0 ? load_pair(sums + g * width) : Pair{zero(), zero()};
    const auto add = [&](int u, int64_t t) {
        if constexpr (fetches) values.fetch_next(t, first);
        const Pair value = load_pair(values.base + values.offsets[t] + first);
        for (int g = 0; g < G; ++g) {
            const F32 weight = set1(weights[g * kSplit + t]);
            apart[u][g].first = fma(weight, value.first, apart[u][g].first);
            apart[u][g].second = fma(weight, value.second, apart[u][g].second);
        }
    };
    int64_t t = 0;
    for (; t + kApart<G> <= size; t += kApart<G>)
        for (int u = 0; u < kApart<G>; ++u) add(u, t + u);
    for (; t < size; ++t) add(0, t);
    for (int g = 0; g < G; ++g) {
        for (int u = 1; u < kApart<G>; ++u) apart[0][g] = apart[0][g] + apart[u][g];
        store_pair(sums + g * width, apart[0][g]);
    }
}

template <int G, bool fetches, class T>
void weigh_slice(
    const float* weights, const Tile<T>& values, int64_t size, float* sums, int64_t width) {
    for (int64_t d = 0; d < width; d += kPair)
        if (fetches && d % kLine<T> == 0)
            weigh_columns<G, true>(weights, values, d, size, sums + d, width);
        else
            weigh_columns<G, false>(weights, values, d, size, sums + d, width);
}

// What a part leaves behind: for each query head weighted sums [width], the weights' sum, and the
// largest score. Elements stand in the order of the values' type.
struct Partial {
    float* sums;  // [num_heads, width]
    float* total;  // [num_heads]
    float* peak;   // [num_heads]

    static int64_t floats(int64_t num_heads, int64_t width) { return num_heads * (width + 2); }

    Partial(float* memory, int64_t num_heads, int64_t width)
        : sums(memory), total(memory + num_heads * width), peak(total + num_heads) {}
};

template <class T, class Cache>
class DecodePart {
public:
    // Slots `first` up to `last` of a sequence's table, at most kSplit.
    DecodePart(const AttendArgs& args, int64_t sequence, int64_t first, int64_t last)
        : args_(args),
          width_(round_up(args.head_dim, kPair)),
          group_(args.num_heads / args.num_kv_heads),
          size_(last - first) {
        find_slots(args, sequence, first, size_, slots_);
        std::fill(slots_ + size_, slots_ + round_up(size_, kTile), slots_[size_ - 1]);
        const int64_t stride = args.num_kv_heads * args.head_dim;
        for (int64_t i = 0; i < round_up(size_, kTile); ++i) offsets_[i] = slots_[i] * stride;
        for (int64_t i = 0; i < kTile; ++i) wide_offsets_[i] = i * args.num_kv_heads * width_;
        reserve();
    }

    void run(int64_t row, const Partial& to) {
        load_query(row);
        const Cache* keys = static_cast<const Cache*>(args_.keys);
        const Cache* values = static_cast<const Cache*>(args_.values);
        for_tiles(keys, values, [&]<int G, bool fetches>(const auto& tile, int64_t first, int64_t head) {
            const int64_t count = round_up(std::min(kTile, size_ - first), 8);
            score_slice<G, fetches>(
                query_ + head * width_, width_, tile, count, scores_ + head * kSplit + first);
        });
        for (int64_t head = 0; head < args_.num_heads; ++head) soften(head, to);
        std::fill(to.sums, to.sums + args_.num_heads * width_, 0.0f);
        for_tiles(
            values, nullptr, [&]<int G, bool fetches>(const auto& tile, int64_t first, int64_t head) {
                const int64_t count = std::min(kTile, size_ - first);
                weigh_slice<G, fetches>(
                    scores_ + head * kSplit + first, tile, count, to.sums + head * width_, width_);
            });
    }

    // Whether heads are read where they lie; else they are copied, and padded.
    static bool is_direct(int64_t head_dim) { return head_dim % kPair == 0; }

    // The elements of a head [width] of a partial sum in their own order.
    static void restore_order(float* sums, int64_t size) {
        if constexpr (!std::is_same_v<Cache, BFloat16>) return;
        if (!is_direct(size)) return;
        for (int64_t d = 0; d < size; d += kPair) {
            float halves[kPair];
            std::memcpy(halves, sums + d, sizeof halves);
            for (int64_t i = 0; i < kPair; ++i) sums[d + i] = halves[i / 2 + i % 2 * kWidth];
        }
    }

    // A head [width] of a partial sum, times factor, as the `size` elements of a result.
    static void store_head(const float* sums, float factor, int64_t size, T* to) {
        const F32 factors = set1(factor);
        if (!is_direct(size)) {
            for (int64_t i = 0; i < size; ++i) store_float(to + i, sums[i] * factor);
            return;
        }
        for (int64_t d = 0; d < size; d += kPair)
            store_from_lanes_of<Cache>(to + d, load_pair(sums + d) * factors);
    }

private:
    void reserve() {
        static thread_local Scratch scratch;
        const int64_t wide = kTile * args_.num_kv_heads * width_;
        const int64_t floats = args_.num_heads * (width_ + kSplit) + wide + 2 * kSplit;
        query_ = scratch.get<float>(floats * sizeof(float));
        scores_ = query_ + args_.num_heads * width_;
        wide_ = scores_ + args_.num_heads * kSplit;
        key_scales_ = wide_ + wide;
        value_scales_ = key_scales_ + kSplit;
    }

    void load_query(int64_t row) {
        const int64_t size = args_.head_dim, num_all = args_.num_heads + 2 * args_.num_kv_heads;
        const T* from = static_cast<const T*>(args_.qkv) + row * num_all * size;
        const F32 scales = set1(args_.scale);
        for (int64_t head = 0; head < args_.num_heads; ++head, from += size) {
            float* to = query_ + head * width_;
            for (int64_t d = 0; is_direct(size) && d < size; d += kPair)
                store_pair(to + d, load_in_lanes_of<Cache>(from + d) * scales);
            if (is_direct(size)) continue;
            for (int64_t i = 0; i < size; ++i) to[i] = to_float(from[i]) * args_.scale;
            std::fill(to + size, to + width_, 0.0f);
        }
    }

    // Calls body<G, fetches>(tile, its first position, first query head) for all of `from`; what is
    // wanted after the last tile is the first of `then`, if any.
    template <class Body>
    void for_tiles(const Cache* from, const Cache* then, Body&& body) {
        for (int64_t first = 0; first < size_; first += kTile) {
            const bool is_last = first + kTile >= size_;
            const Cache* next = is_last ? then : from;
            const int64_t* next_offsets = is_last ? offsets_ : offsets_ + first + kTile;
            if (!is_direct(args_.head_dim)) widen(from, first);
            for (int64_t kv_head = 0; kv_head < args_.num_kv_heads; ++kv_head) {
                const int64_t at = kv_head * args_.head_dim;
                if (is_direct(args_.head_dim))
                    for_slices(
                        Tile<Cache>{from + at, offsets_ + first, next ? next + at : nullptr, next_offsets},
                        first, kv_head, body);
                else
                    for_slices(
                        Tile<float>{wide_ + kv_head * width_, wide_offsets_, nullptr, nullptr}, first,
                        kv_head, body);
            }
        }
    }

    // The first slice of a kv head's query heads fetches what all of them will want.
    template <class Tile, class Body>
    void for_slices(const Tile& tile, int64_t first, int64_t kv_head, Body&& body) {
        bool fetches = tile.next_base != nullptr;
        for (int64_t done = 0; done < group_; fetches = false) {
            const int64_t left = group_ - done, head = kv_head * group_ + done;
            const auto call = [&]<int G>() {
                if (fetches)
                    body.template operator()<G, true>(tile, first, head);
                else
                    body.template operator()<G, false>(tile, first, head);
                done += G;
            };
            switch (left <= kMaxSlice ? left : std::min<int64_t>(kMaxSlice, (left + 1) / 2)) {
                case 1: call.template operator()<1>(); break;
                case 2: call.template operator()<2>(); break;
                case 3: call.template operator()<3>(); break;
                default: call.template operator()<4>();
            }
        }
    }

    void widen(const Cache* from, int64_t first) {
        const int64_t size = args_.head_dim;
        for (int64_t t = 0; t < kTile; ++t)
            for (int64_t kv_head = 0; kv_head < args_.num_kv_heads; ++kv_head) {
                const Cache* head = from + offsets_[first + t] + kv_head * size;
                float* to = wide_ + wide_offsets_[t] + kv_head * width_;
                for (int64_t i = 0; i < size; ++i) to[i] = to_float(head[i]);
                std::fill(to + size, to + width_, 0.0f);
            }
    }

    // A head's scores to weights, whose sum and peak go to `to`.
    void soften(int64_t head, const Partial& to) {
        float* scores = scores_ + head * kSplit;
        const int64_t padded = round_up(size_, kWidth), kv_head = head / group_;
        const bool is_scaled = args_.key_scales != nullptr;
        if (is_scaled && head % group_ == 0) {
            gather_scales(args_, args_.key_scales, kv_head, slots_, size_, key_scales_);
            gather_scales(args_, args_.value_scales, kv_head, slots_, size_, value_scales_);
        }
        if (is_scaled)
            for (int64_t i = 0; i < padded; i += kWidth)
                store(scores + i, load(scores + i) * load(key_scales_ + i));
        std::fill(scores + size_, scores + padded, -INFINITY);
        F32 peaks = load(scores);
        for (int64_t i = kWidth; i < padded; i += kWidth) peaks = max(peaks, load(scores + i));
        const float peak = max_of(peaks);
        F32 totals = zero();
        for (int64_t i = 0; i < padded; i += kWidth) {
            const F32 weight = exp(load(scores + i) - set1(peak));
            totals = totals + weight;
            store(scores + i, is_scaled ? weight * load(value_scales_ + i) : weight);
        }
        to.total[head] = sum(totals);
        to.peak[head] = peak;
    }

    const AttendArgs& args_;
    const int64_t width_;  // of a head, padded
    const int64_t group_;
    const int64_t size_;
    int64_t slots_[kSplit];
    int64_t offsets_[kSplit];
    int64_t wide_offsets_[kTile];
    float* query_;   // [num_heads, width]
    float* scores_;  // [num_heads, kSplit]
    float* wide_;    // [kTile, num_kv_heads, width]
    float* key_scales_;    // [kSplit], of the kv head at hand
    float* value_scales_;  // [kSplit]
};

}  // namespace trunkline
