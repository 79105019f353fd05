// From rows of logits to tokens and log-probabilities.
//
// What is drawn is what workers/engine/sampler.py describes. Its noise is used bit by bit, up to the
// logarithms' last place.
#include "kernel.h"
#include "pool.h"
#include "vocabulary_row.h"

namespace trunkline {
namespace {

struct RowParams {
    float temperature;  // 0: the likeliest token
    float top_p;        // 1: off
    float min_p;        // 0: off
    int32_t top_k;      // 0: off
    int32_t key[2];     // of the noise
};

struct SampleArgs {
    const void* logits;
    const RowParams* params;  // null: the likeliest tokens
    int64_t* token_ids;       // -1 where none can be drawn
    int64_t num_rows;
    int64_t vocabulary;
    DType dtype;
};

struct LogprobsArgs {
    const void* logits;
    const int64_t* token_ids;
    float* logprobs;
    int64_t* top_ids;
    float* top_logprobs;
    int64_t num_rows;
    int64_t vocabulary;
    int64_t num_top;
    DType dtype;
};

// A thread's memory for one row.
struct RowMemory {
    float* maxima;
    float* values;
    float* weights;

    explicit RowMemory(int64_t vocabulary) {
        thread_local Scratch scratch;
        const size_t size = padded(vocabulary) + kBlock;
        maxima = scratch.get<float>(3 * size * sizeof(float));
        values = maxima + size;
        weights = values + size;
    }
};

template <class Body>
void for_rows(int64_t num_rows, int64_t vocabulary, Body&& body) {
    const int64_t step = std::max<int64_t>(1, 65536 / vocabulary);
    parallel_for((num_rows + step - 1) / step, [&](int64_t chunk) {
        const int64_t end = std::min((chunk + 1) * step, num_rows);
        for (int64_t row = chunk * step; row < end; ++row) body(row);
    });
}

// The noise of sampling_noise.py.

constexpr float kAlmostOne = 1.0f - 0x1p-24f;
constexpr float kMostNoise = 22.2f;  // -log(2**-32) and a little

inline I32 avalanche(I32 bits) {
    bits = mul(bit_xor(bits, shift_right<16>(bits)), set1_int(-0x7A143595));
    bits = mul(bit_xor(bits, shift_right<13>(bits)), set1_int(-0x3D4D51CB));
    return bit_xor(bits, shift_right<16>(bits));
}

// In (0, 1), for kWidth tokens from `first` on.
inline F32 uniform(int64_t first, const int32_t* key) {
    const I32 ids = add(set1_int(static_cast<int32_t>(first)), lane_numbers());
    I32 bits = avalanche(bit_xor(mul(ids, set1_int(-0x61C88647)), set1_int(key[0])));
    bits = avalanche(bit_xor(bits, set1_int(key[1])));
    const F32 whole = to_float(bit_and(bits, set1_int(0x7FFFFFFF)));
    return min((whole + set1(0.5f)) * set1(0x1p-31f), set1(kAlmostOne));
}

inline float gumbel(float uniform) { return -std::log(-std::log1p(-uniform)); }

// No less than gumbel(uniform), by 0.06 at most and a little: -log(-log(1 - u)) <= -log(u), and a
// float's bits are a piecewise linear logarithm that is never too large.
inline F32 gumbel_bound(F32 uniform) {
    constexpr float kLog2 = 0.6931472f;
    return fma(to_float(bits_of(uniform)), set1(-kLog2 * 0x1p-23f), set1(127 * kLog2 + 1e-4f));
}

// The logits over the temperature, with 0 for the likeliest: as the reference has them.
struct Scale {
    float highest, temperature;

    float operator()(float logit) const { return (logit - highest) / temperature; }
    F32 operator()(F32 logits) const { return div(logits - set1(highest), set1(temperature)); }
};

// Gumbel-max over the tokens whose scaled logit is `floor` or more, the likeliest among them. The
// noise is computed to the end only where it may win.
template <class T>
int64_t draw(const VocabularyRow<T>& row, Scale scale, float floor, const int32_t* key) {
    alignas(64) float noise[kWidth], scaled[kWidth];
    int64_t token = row.likeliest();
    store(noise, uniform(token, key));
    float best = gumbel(noise[0]);
    for (int64_t index = 0; index < row.num_blocks(); ++index) {
        const float most = scale(row.maxima()[index]);
        if (most < floor || most + kMostNoise < best) continue;
        const T* const logits = row.block(index);
        for (int64_t i = 0; i < kBlock; i += kWidth) {
            const int64_t first = index * kBlock + i;
            const F32 x = scale(load(logits + i)), u = uniform(first, key);
            uint32_t candidates =
                at_least(gumbel_bound(u) + x, set1(best)) & at_least(x, set1(floor));
            if (!candidates) continue;
            store(noise, u);
            store(scaled, x);
            for (; candidates; candidates &= candidates - 1) {
                const int lane = std::countr_zero(candidates);
                const float total = gumbel(noise[lane]) + scaled[lane];
                if (total > best || (total == best && first + lane < token)) {
                    best = total;
                    token = first + lane;
                }
            }
        }
    }
    return token;
}

// The sum of the exponentials of all scaled logits.
template <class T>
float mass(const VocabularyRow<T>& row, Scale scale) {
    F32 even = zero(), odd = zero();
    for (int64_t index = 0; index < row.num_blocks(); ++index) {
        if (scale(row.maxima()[index]) < -87.3f) continue;  // whose exponential is zero
        for (int64_t i = 0; i < kBlock; i += 2 * kWidth) {
            const Pair logits = load_pair(row.block(index) + i);
            even = even + exp(scale(logits.first));
            odd = odd + exp(scale(logits.second));
        }
    }
    return sum(even + odd);
}

// Scaled logits from some floor on, and their exponentials.
struct Collected {
    float* values;
    float* weights;
    int64_t count = 0;

    template <class T>
    void collect(const VocabularyRow<T>& row, Scale scale, float floor) {
        count = 0;
        for (int64_t index = 0; index < row.num_blocks(); ++index) {
            if (scale(row.maxima()[index]) < floor) continue;
            for (int64_t i = 0; i < kBlock; i += kWidth) {
                const F32 x = scale(load(row.block(index) + i));
                const uint32_t kept = at_least(x, set1(floor));
                compress_store(values + count, x, kept);
                count += std::popcount(kept);
            }
        }
        std::fill_n(values + count, kBlock, std::numeric_limits<float>::quiet_NaN());
    }

    void weigh() {
        for (int64_t i = 0; i < count; i += kWidth) store(weights + i, exp(load(values + i)));
    }

    float weight_from(float floor) const {
        return sum_from(floor, [&](int64_t i) { return load(weights + i); });
    }

    // Exact, as float32 has all integers up to 2**24.
    float count_from(float floor) const {
        return sum_from(floor, [](int64_t) { return set1(1.0f); });
    }

private:
    // The sum of what `of` gives for the values from `floor` on, by groups of kWidth.
    template <class Of>
    float sum_from(float floor, Of&& of) const {
        F32 totals[4] = {zero(), zero(), zero(), zero()};
        for (int64_t i = 0; i < count; i += 4 * kWidth)
            for (int part = 0; part < 4; ++part) {
                const int64_t at = i + part * kWidth;
                const F32 kept = where_at_least(load(values + at), set1(floor), of(at));
                totals[part] = totals[part] + kept;
            }
        return sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
    }
};

// The largest value, between `lowest` and 0, for which is_enough holds; or `lowest`. Halves the
// range of floats, whose order is that of their bits.
template <class IsEnough>
float highest_floor(float lowest, IsEnough&& is_enough) {
    uint32_t low = 0, high = std::bit_cast<uint32_t>(std::abs(lowest));
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (is_enough(-std::bit_cast<float>(middle)))
            high = middle;
        else
            low = middle + 1;
    }
    return -std::bit_cast<float>(low);
}

// The least scaled logit that top_k, and top_p among those that top_k leaves, do not cut off.
template <class T>
float top_floor(
    const VocabularyRow<T>& row, Scale scale, const RowParams& params, RowMemory memory) {
    Collected top{memory.values, memory.weights};
    float floor = -kInfinity, total, num_left = static_cast<float>(row.num_blocks() * kBlock);
    if (params.top_k > 0) {
        num_left = static_cast<float>(params.top_k);
        const float reached = scale(row.reached_by_blocks(params.top_k, memory.values));
        top.collect(row, scale, reached);
        floor = highest_floor(reached, [&](float x) { return top.count_from(x) >= num_left; });
        if (params.top_p >= 1.0f) return floor;
        top.weigh();
        // Of the tokens at the floor, only as many weigh as top_k leaves.
        const float above = std::nextafter(floor, kInfinity);
        total = top.weight_from(above) + (num_left - top.count_from(above)) * std::exp(floor);
    } else {
        total = mass(row, scale);
    }
    // All tokens less likely than this weigh less than what top_p cuts off.
    const float rest = (1.0f - params.top_p) * total / num_left;
    const float lowest = std::min(std::max({floor, std::log(rest) - 0.01f, -88.0f}), 0.0f);
    if (params.top_k == 0) {
        top.collect(row, scale, lowest);
        top.weigh();
    }
    const float wanted = params.top_p * total;
    return highest_floor(lowest, [&](float x) { return top.weight_from(x) >= wanted; });
}

template <class T>
int64_t sample(const T* logits, int64_t vocabulary, const RowParams* params) {
    const RowMemory memory(vocabulary);
    const VocabularyRow<T> row(logits, vocabulary, memory.maxima);
    if (!row.is_finite()) return -1;
    if (!params || params->temperature == 0.0f) return row.likeliest();
    const Scale scale{row.highest(), std::max(params->temperature, 1e-30f)};
    float floor = std::log(params->min_p);
    if (params->top_k > 0 || params->top_p < 1.0f)
        floor = std::max(floor, top_floor(row, scale, *params, memory));
    return draw(row, scale, floor, params->key);
}

template <class T>
void sample_rows(const SampleArgs& args) {
    for_rows(args.num_rows, args.vocabulary, [&](int64_t row) {
        const T* const logits = static_cast<const T*>(args.logits) + row * args.vocabulary;
        args.token_ids[row] =
            sample(logits, args.vocabulary, args.params ? args.params + row : nullptr);
    });
}

struct Token {
    float logit;
    int32_t id;
};

// The `count` likeliest tokens, best first, and of equal ones the first first.
template <class T>
const Token* top_tokens(
    const VocabularyRow<T>& row, int64_t vocabulary, int64_t count, RowMemory memory) {
    const float least = row.reached_by_blocks(count, memory.values);
    Token* const tokens = reinterpret_cast<Token*>(memory.values);
    Token* end = tokens;
    for (int64_t index = 0; index < row.num_blocks(); ++index) {
        if (row.maxima()[index] < least) continue;
        const int64_t size = std::min(kBlock, vocabulary - index * kBlock);
        for (int64_t i = 0; i < size; ++i) {
            const float logit = to_float(row.block(index)[i]);
            if (logit >= least) *end++ = {logit, static_cast<int32_t>(index * kBlock + i)};
        }
    }
    std::partial_sort(tokens, tokens + count, end, [](Token a, Token b) {
        return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
    });
    return tokens;
}

template <class T>
void logprobs(const LogprobsArgs& args, int64_t at) {
    const T* const logits = static_cast<const T*>(args.logits) + at * args.vocabulary;
    const RowMemory memory(args.vocabulary);
    const VocabularyRow<T> row(logits, args.vocabulary, memory.maxima);
    int64_t* const ids = args.top_ids + at * args.num_top;
    float* const tops = args.top_logprobs + at * args.num_top;
    if (!row.is_finite()) {
        args.logprobs[at] = std::numeric_limits<float>::quiet_NaN();
        for (int64_t i = 0; i < args.num_top; ++i) {
            ids[i] = i;
            tops[i] = args.logprobs[at];
        }
        return;
    }
    const float total = row.highest() + std::log(mass(row, Scale{row.highest(), 1.0f}));
    args.logprobs[at] = to_float(logits[args.token_ids[at]]) - total;
    if (args.num_top == 0) return;
    const Token* const tokens = top_tokens(row, args.vocabulary, args.num_top, memory);
    for (int64_t i = 0; i < args.num_top; ++i) {
        ids[i] = tokens[i].id;
        tops[i] = tokens[i].logit - total;
    }
}

}  // namespace
}  // namespace trunkline

// One token for each row.
TRUNKLINE_KERNEL(sample, trunkline::SampleArgs) {
    if (args->dtype == trunkline::DType::float32)
        trunkline::sample_rows<float>(*args);
    else
        trunkline::sample_rows<trunkline::BFloat16>(*args);
}

// The log-probabilities of one token and of the `num_top` likeliest ones of each row.
TRUNKLINE_KERNEL(logprobs, trunkline::LogprobsArgs) {
    trunkline::for_rows(args->num_rows, args->vocabulary, [&](int64_t row) {
        if (args->dtype == trunkline::DType::float32)
            trunkline::logprobs<float>(*args, row);
        else
            trunkline::logprobs<trunkline::BFloat16>(*args, row);
    });
}
