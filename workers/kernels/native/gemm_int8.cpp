// Products of int8 with int8, exact in int32.
#include "gemm_tile.h"

namespace trunkline {
namespace {

#if defined(__AVX512VNNI__) || defined(TRUNKLINE_EMULATED_AVX512)

// VPDPBUSD multiplies unsigned with signed: weights are moved up by 128, which is taken off at the
// end as 128 times the sum of a row's codes.
struct Int8Arithmetic : IntSums {
    static constexpr int words_per_step = 1;
    static Int weight(const uint8_t* step, int) {
        return _mm512_xor_si512(load_int(step), broadcast(0x80808080u));
    }
    static Int factor(uint32_t word) { return broadcast(word); }
    static Acc dot(Acc acc, Int weight, Int factor) {
        return {_mm512_dpbusd_epi32(acc.v, weight, factor)};
    }
};

constexpr Method kFew = {WeightFormat::int8, XFormat::int8_quads, 1, &tiles_of<Int8Arithmetic>,
                         nullptr, 1, true, 128};
constexpr Method kMany = kFew;

#else

// VPMADDUBSW, too, multiplies unsigned with signed, and adds pairs in int16: |weight| times x with
// the weight's sign. 2 * 128 * 127 fits.
struct SignArithmetic : IntSums {
    static constexpr int words_per_step = 1;
    struct Weight {
        Int magnitude;
        Int sign;
    };
    static Weight weight(const uint8_t* step, int) {
        const Int codes = load_int(step);
        return {_mm256_abs_epi8(codes), codes};
    }
    static Int factor(uint32_t word) { return broadcast(word); }
    static Acc dot(Acc acc, Weight weight, Int factor) {
        const Int pairs =
            _mm256_maddubs_epi16(weight.magnitude, _mm256_sign_epi8(factor, weight.sign));
        return {in_place(
            _mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))};
    }
};

// Widened to int16 once for many rows, a product needs half as many operations.
struct Int16Arithmetic : IntSums {
    static constexpr int words_per_step = 1;
    static Int weight(const uint8_t* step, int) { return load_int(step); }
    static Int factor(uint32_t word) { return broadcast(word); }
    static Acc dot(Acc acc, Int weight, Int factor) {
        return {in_place(_mm256_add_epi32(acc.v, _mm256_madd_epi16(weight, factor)))};
    }
};

void expand_to_int16(const ExpandArgs& args) {
    const uint8_t* steps = args.steps;
    uint8_t* to = args.to;
    // Bytes 0 and 1 of each lane, and bytes 2 and 3, to the upper halves of int16.
    const Int first = _mm256_setr_epi8(
        -1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13,
        -1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13);
    const Int second = _mm256_setr_epi8(
        -1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15,
        -1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15);
    for (int64_t step = 0; step < args.num_steps; ++step) {
        for (int part = 0; part < 2; ++part) {
            const Int codes = load_int(steps + part * 32);
            const auto widened = [&](Int places) {
                return _mm256_srai_epi16(_mm256_shuffle_epi8(codes, places), 8);
            };
            auto* out = reinterpret_cast<int32_t*>(to + part * 32);
            store_int(out, widened(first));
            store_int(out + kPanel, widened(second));
        }
        steps += kStepBytes;
        to += 2 * kStepBytes;
    }
}

constexpr Method kFew = {WeightFormat::int8, XFormat::int8_quads, 1, &tiles_of<SignArithmetic>,
                         nullptr, 1, true, 0};
constexpr Method kMany = {WeightFormat::int8, XFormat::int16_pairs, 2, &tiles_of<Int16Arithmetic>,
                          expand_to_int16, 2, true, 0};

#endif

}  // namespace

const Methods kInt8Int8Methods = {kFew, kMany};

}  // namespace trunkline

TRUNKLINE_KERNEL(linear_int8_int8, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kInt8Int8Methods);
}
