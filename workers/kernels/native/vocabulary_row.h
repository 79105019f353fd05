// One row of logits, in blocks whose largest values are known, so that most blocks are skipped.
#pragma once

#include "scratch.h"
#include "vec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>

namespace trunkline {

constexpr int64_t kBlock = 64;
constexpr float kLowest = std::numeric_limits<float>::lowest();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
class VocabularyRow {
public:
    // Reads all logits once. `memory` has room for all blocks' largest values.
    VocabularyRow(const T* logits, int64_t size, float* memory)
        : logits_(logits), size_(size), num_blocks_((size + kBlock - 1) / kBlock), maxima_(memory) {
        const int64_t whole = size / kBlock * kBlock;
        std::fill_n(last_, kBlock, minus_infinity());
        std::copy_n(logits + whole, size - whole, last_);
        scan();
    }

    int64_t num_blocks() const { return num_blocks_; }
    const float* maxima() const { return maxima_; }
    float highest() const { return highest_; }

    // Whether a token can be drawn: no logit is NaN or infinity, and one is more than its negative.
    bool is_finite() const { return is_finite_; }

    // kBlock logits; behind the row's end they are minus infinity.
    const T* block(int64_t index) const {
        return (index + 1) * kBlock <= size_ ? logits_ + index * kBlock : last_;
    }

    // The first token whose logit is the highest.
    int64_t likeliest() const {
        const int64_t index = std::find(maxima_, maxima_ + num_blocks_, highest_) - maxima_;
        const T* const logits = block(index);
        int64_t lane = 0;
        while (to_float(logits[lane]) != highest_) ++lane;
        return index * kBlock + lane;
    }

    // The largest value that `rank` blocks reach, and so at least `rank` logits.
    float reached_by_blocks(int64_t rank, float* memory) const {
        if (rank > num_blocks_) return -kInfinity;
        std::copy_n(maxima_, num_blocks_, memory);
        std::nth_element(memory, memory + rank - 1, memory + num_blocks_, std::greater<>());
        return memory[rank - 1];
    }

private:
    static T minus_infinity() {
        T result;
        store_float(&result, -kInfinity);
        return result;
    }

    void scan() {
        F32 poison[4] = {zero(), zero(), zero(), zero()};
        highest_ = -kInfinity;
        for (int64_t index = 0; index < num_blocks_; ++index) {
            const T* const logits = block(index);
            F32 most = set1(-kInfinity);
            for (int64_t i = 0; i < kBlock; i += 4 * kWidth) {
                const Pair a = load_pair(logits + i), b = load_pair(logits + i + 2 * kWidth);
                most = max(most, max(max(a.first, a.second), max(b.first, b.second)));
                poison[0] = poisoned(poison[0], a.first);
                poison[1] = poisoned(poison[1], a.second);
                poison[2] = poisoned(poison[2], b.first);
                poison[3] = poisoned(poison[3], b.second);
            }
            maxima_[index] = max_of(most);
            if (maxima_[index] > highest_) highest_ = maxima_[index];
        }
        const float total = sum((poison[0] + poison[1]) + (poison[2] + poison[3]));
        is_finite_ = total == 0.0f && highest_ >= kLowest;
    }

    // Zero times x is zero, or NaN if x is NaN or infinity. Minus infinity, a banned token's logit,
    // is taken for a number.
    static F32 poisoned(F32 poison, F32 x) { return fma(max(set1(kLowest), x), zero(), poison); }

    const T* logits_;
    int64_t size_;
    int64_t num_blocks_;
    float* maxima_;
    T last_[kBlock];
    float highest_;
    bool is_finite_;
};

// Memory for `count` floats, or whatever else has 4 bytes; pairs of vectors may be read behind them.
inline size_t padded(int64_t count) { return static_cast<size_t>(count + kBlock) / kBlock * kBlock; }

}  // namespace trunkline
