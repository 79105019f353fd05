// vec.h on AVX512 (F, BW, DQ, VL): sixteen lanes.
#pragma once

#include <immintrin.h>

namespace trunkline {

constexpr int kWidth = 16;

struct F32 {
    __m512 v;
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

inline void store(float* to, F32 x) { _mm512_storeu_ps(to, x.v); }

inline void store(BFloat16* to, F32 x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i high = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
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

inline float sum(F32 x) { return _mm512_reduce_add_ps(x.v); }
inline float max_of(F32 x) { return _mm512_reduce_max_ps(x.v); }

}  // namespace trunkline
