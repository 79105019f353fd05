// Products with float32, bfloat16 and int8 weights, the activations as they are.
#include "gemm_tile.h"

namespace trunkline {
namespace {

struct Float32Arithmetic : FloatSums {
    static constexpr int words_per_step = 1;
    static F32 weight(const uint8_t* step, int) {
        return load(reinterpret_cast<const float*>(step));
    }
    static F32 factor(uint32_t word) { return as_float(broadcast(word)); }
    static F32 dot(F32 acc, F32 weight, F32 factor) { return fma(weight, factor, acc); }
};

// A bfloat16 is the upper half of a float32, so a pair of them needs one operation each.
F32 half_of(Int pairs, int word) {
    return as_float(word == 0 ? shift_left<16>(pairs) : bit_and(pairs, 0xffff0000u));
}

struct WidenedBFloat16Arithmetic : Float32Arithmetic {
    static constexpr int words_per_step = 2;
    static F32 weight(const uint8_t* step, int word) { return half_of(load_int(step), word); }
};

F32 quarter_of(Int quads, int word) {
    switch (word) {
        case 0: return to_float(shift_right_signed<24>(shift_left<24>(quads)));
        case 1: return to_float(shift_right_signed<24>(shift_left<16>(quads)));
        case 2: return to_float(shift_right_signed<24>(shift_left<8>(quads)));
        default: return to_float(shift_right_signed<24>(quads));
    }
}

// Codes; the scales come in at the end.
struct WidenedInt8Arithmetic : Float32Arithmetic {
    static constexpr int words_per_step = 4;
    static F32 weight(const uint8_t* step, int word) { return quarter_of(load_int(step), word); }
};

template <class Arithmetic>
void expand_to_float(const uint8_t* steps, int64_t num_steps, uint8_t* to) {
    auto* out = reinterpret_cast<float*>(to);
    for (int64_t step = 0; step < num_steps; ++step)
#pragma GCC unroll 4
        for (int word = 0; word < Arithmetic::words_per_step; ++word) {
#pragma GCC unroll 2
            for (int part = 0; part < kVecsPerPanel; ++part)
                store(out + part * kWidth,
                      Arithmetic::weight(steps + step * kStepBytes + part * kWidth * 4, word));
            out += kPanel;
        }
}

template <class Arithmetic>
constexpr Method direct(WeightFormat format) {
    return {format, XFormat::float32, Arithmetic::words_per_step, &tiles_of<Arithmetic>, nullptr, 1};
}

template <class Arithmetic>
constexpr Method expanded(WeightFormat format) {
    constexpr int words = Arithmetic::words_per_step;
    return {format, XFormat::float32, words, &tiles_of<Float32Arithmetic>,
            expand_to_float<Arithmetic>, words};
}

constexpr Method kFloat32 = direct<Float32Arithmetic>(WeightFormat::float32);
constexpr Method kInt8Few = direct<WidenedInt8Arithmetic>(WeightFormat::int8);
constexpr Method kInt8Many = expanded<WidenedInt8Arithmetic>(WeightFormat::int8);

#if defined(__AVX512BF16__) || defined(TRUNKLINE_EMULATED_AVX512)
struct BFloat16Arithmetic : FloatSums {
    static constexpr int words_per_step = 1;
    static __m512bh weight(const uint8_t* step, int) { return (__m512bh)load_int(step); }
    static __m512bh factor(uint32_t word) { return (__m512bh)broadcast(word); }
    static F32 dot(F32 acc, __m512bh weight, __m512bh factor) {
        return {_mm512_dpbf16_ps(acc.v, weight, factor)};
    }
};

constexpr Method kBFloat16Few = {
    WeightFormat::bfloat16, XFormat::bfloat16_pairs, 1, &tiles_of<BFloat16Arithmetic>, nullptr, 1};
constexpr Method kBFloat16Many = kBFloat16Few;
#else
constexpr Method kBFloat16Few = direct<WidenedBFloat16Arithmetic>(WeightFormat::bfloat16);
constexpr Method kBFloat16Many = expanded<WidenedBFloat16Arithmetic>(WeightFormat::bfloat16);
#endif

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(linear_float32, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kFloat32, trunkline::kFloat32);
}

TRUNKLINE_KERNEL(linear_bfloat16, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kBFloat16Few, trunkline::kBFloat16Many);
}

TRUNKLINE_KERNEL(linear_int8, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kInt8Few, trunkline::kInt8Many);
}
