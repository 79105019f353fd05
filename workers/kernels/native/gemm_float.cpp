// Products with float32, bfloat16 and int8 weights, the activations as they are.
#include "gemm_tile.h"

namespace trunkline {
namespace {

// Byte `word` of each lane times kInt8Unit: moved to be the upper byte, which takes one operation.
F32 quarter_of(Int quads, int word) {
    switch (word) {
        case 0: return to_float(shift_left<24>(quads));
        case 1: return to_float(bit_and(shift_left<16>(quads), 0xff000000u));
        case 2: return to_float(bit_and(shift_left<8>(quads), 0xff000000u));
        default: return to_float(bit_and(quads, 0xff000000u));
    }
}

// Codes times kInt8Unit; scales come in at the end.
struct WidenedInt8Arithmetic : Float32Arithmetic {
    static constexpr int words_per_step = 4;
    static F32 weight(const uint8_t* step, int word) { return quarter_of(load_int(step), word); }
};

void expand_int8(const ExpandArgs& args) {
    auto* out = reinterpret_cast<float*>(args.to);
    for (int64_t step = 0; step < args.num_steps; ++step)
#pragma GCC unroll 4
        for (int word = 0; word < WidenedInt8Arithmetic::words_per_step; ++word) {
#pragma GCC unroll 2
            for (int part = 0; part < kPanel; part += kWidth) {
                const uint8_t* from = args.steps + step * kStepBytes + part * 4;
                store(out + part, WidenedInt8Arithmetic::weight(from, word));
            }
            out += kPanel;
        }
}

template <class Arithmetic>
constexpr Method direct(WeightFormat format) {
    constexpr int words = Arithmetic::words_per_step;
    return {format, XFormat::float32, words, &tiles_of<Arithmetic>, nullptr, 1};
}

const Method kFloat32 = {WeightFormat::float32, XFormat::float32, 1, &kFloat32Tiles, nullptr, 1};
constexpr Method kInt8Few = direct<WidenedInt8Arithmetic>(WeightFormat::int8);
const Method kInt8Many = {WeightFormat::int8, XFormat::float32, 4,
                              &kFloat32Tiles, expand_int8, 4};

#if defined(__AVX512BF16__) || defined(TRUNKLINE_EMULATED_AVX512)
struct BFloat16Arithmetic : FloatSums {
    static constexpr int words_per_step = 1;
    static __m512bh weight(const uint8_t* step, int) { return (__m512bh)load_int(step); }
    static __m512bh factor(uint32_t word) { return (__m512bh)broadcast(word); }
    static F32 dot(F32 acc, __m512bh weight, __m512bh factor) {
        return {_mm512_dpbf16_ps(acc.v, weight, factor)};
    }
};

constexpr Method kBFloat16 = {
    WeightFormat::bfloat16, XFormat::bfloat16_pairs, 1, &tiles_of<BFloat16Arithmetic>, nullptr, 1};
#else
// A bfloat16 is the upper half of a float32, so a pair of them needs one operation each: no more
// than FMA leaves room for.
struct BFloat16Arithmetic : Float32Arithmetic {
    static constexpr int words_per_step = 2;
    static F32 weight(const uint8_t* step, int word) {
        const Int pairs = load_int(step);
        return as_float(word == 0 ? shift_left<16>(pairs) : bit_and(pairs, 0xffff0000u));
    }
};

constexpr Method kBFloat16 = direct<BFloat16Arithmetic>(WeightFormat::bfloat16);
#endif

}  // namespace

const Tiles kFloat32Tiles = tiles_of<Float32Arithmetic>;
const Methods kFloat32Methods = {kFloat32, kFloat32};
const Methods kBFloat16Methods = {kBFloat16, kBFloat16};
const Methods kInt8Methods = {kInt8Few, kInt8Many};

}  // namespace trunkline

TRUNKLINE_KERNEL(linear_float32, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kFloat32Methods);
}

TRUNKLINE_KERNEL(linear_bfloat16, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kBFloat16Methods);
}

TRUNKLINE_KERNEL(linear_int8, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kInt8Methods);
}
