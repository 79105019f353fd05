// vec.h on AVX512 (F, BW, DQ, VL): sixteen lanes.
#pragma once

#include <immintrin.h>

namespace trunkline {

constexpr int kWidth = 16;

struct F32 {
    __m512 v;
};

struct Pair {
    F32 first, second;
};

inline F32 zero() { return {_mm512_setzero_ps()}; }
inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32 load(const float* from) { return {_mm512_loadu_ps(from)}; }

inline F32 load(const BFloat16* from) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16))};
}

inline F32 load(const int8_t* from) {
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(narrow))};
}

// 2 * kWidth elements: in `even` those at places 0, 2, 4 .., in `odd` the others.
inline void load_even_odd(const BFloat16* from, F32& even, F32& odd) {
    const __m512i both = _mm512_loadu_si512(from);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline void store(float* to, F32 x) { _mm512_storeu_ps(to, x.v); }

// Rounded to bfloat16, whose bits are the upper half of each lane; the lower half is arbitrary.
inline __m512i bfloat16_bits(F32 x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(rounded, nan, quiet);
}

inline void store(BFloat16* to, F32 x) {
    const __m512i high = _mm512_srli_epi32(bfloat16_bits(x), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
}

inline Pair store_pair(BFloat16* to, Pair x) {
    const __m512i first = bfloat16_bits(x.first), second = bfloat16_bits(x.second);
    const __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(first, 16), second);
    _mm512_storeu_si512(to, both);
    const __m512i high = _mm512_set1_epi32(-0x10000);
    return {{_mm512_castsi512_ps(_mm512_and_si512(first, high))},
            {_mm512_castsi512_ps(_mm512_and_si512(second, high))}};
}

// To the nearest integer, ties to even, which must be in -128 .. 127.
inline void store(int8_t* to, F32 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}

inline F32 add(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 abs(F32 x) { return {_mm512_abs_ps(x.v)}; }

// To the nearest integer, ties to even.
inline F32 round(F32 x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// x * 2**n for integers n in -126 .. 127.
inline F32 scale_by_power_of_two(F32 x, F32 n) {
    const __m512i exponent = _mm512_slli_epi32(
        _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23);
    return {_mm512_mul_ps(x.v, _mm512_castsi512_ps(exponent))};
}

// Zero in the lanes where a < b, else x.
inline F32 zero_where_less(F32 a, F32 b, F32 x) {
    const __mmask16 is_less = _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ);
    return {_mm512_mask_mov_ps(x.v, is_less, _mm512_setzero_ps())};
}

// Lane j of row i to lane i of row j.
inline void transpose(F32 (&rows)[kWidth]) {
    __m512 pairs[16], quads[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            quads[i + 2 * j] = _mm512_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0x44);
            quads[i + 2 * j + 1] = _mm512_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0xee);
        }
    for (int i = 0; i < 4; ++i) {  // 128-bit parts: of rows 0-3, 4-7, 8-11, 12-15 in quads i, i+4 ..
        const __m512 low_a = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0x88);
        const __m512 low_b = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0x88);
        const __m512 high_a = _mm512_shuffle_f32x4(quads[i], quads[i + 4], 0xdd);
        const __m512 high_b = _mm512_shuffle_f32x4(quads[i + 8], quads[i + 12], 0xdd);
        rows[i].v = _mm512_shuffle_f32x4(low_a, low_b, 0x88);
        rows[i + 8].v = _mm512_shuffle_f32x4(low_a, low_b, 0xdd);
        rows[i + 4].v = _mm512_shuffle_f32x4(high_a, high_b, 0x88);
        rows[i + 12].v = _mm512_shuffle_f32x4(high_a, high_b, 0xdd);
    }
}

inline float sum(F32 x) { return _mm512_reduce_add_ps(x.v); }
// The sums of a, b, c and d, side by side.
inline void store_sums(float* to, F32 a, F32 b, F32 c, F32 d) {
    const auto folded = [](F32 x) {
        return _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    };
    const __m256 halves = _mm256_hadd_ps(
        _mm256_hadd_ps(folded(a), folded(b)), _mm256_hadd_ps(folded(c), folded(d)));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

inline float max_of(F32 x) { return _mm512_reduce_max_ps(x.v); }

// Bit i is set where a >= b in lane i; not for NaN.
inline uint32_t at_least(F32 a, F32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }

// x in the lanes where a >= b, else zero.
inline F32 where_at_least(F32 a, F32 b, F32 x) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ), x.v)};
}

// Stores the lanes whose bit is set next to each other; the memory of kWidth lanes is written.
inline void compress_store(float* to, F32 x, uint32_t lanes) {
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(lanes), x.v));
}

// Integers of 32 bits, which wrap.
struct I32 {
    __m512i v;
};

inline I32 set1_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32 lane_numbers() {
    return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
inline I32 add(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 mul(I32 a, I32 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
inline I32 bit_and(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
inline I32 bit_xor(I32 a, I32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int count>
I32 shift_right(I32 x) { return {_mm512_srli_epi32(x.v, count)}; }  // zeros come in
inline F32 to_float(I32 x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline I32 bits_of(F32 x) { return {_mm512_castps_si512(x.v)}; }

}  // namespace trunkline
