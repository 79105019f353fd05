// vec.h on AVX2 and FMA: eight lanes.
#pragma once

#include <immintrin.h>

namespace trunkline {

constexpr int kWidth = 8;

struct F32 {
    __m256 v;
};

struct Pair {
    F32 first, second;
};

inline F32 zero() { return {_mm256_setzero_ps()}; }
inline F32 set1(float x) { return {_mm256_set1_ps(x)}; }
inline F32 load(const float* from) { return {_mm256_loadu_ps(from)}; }

inline F32 load(const BFloat16* from) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}

inline F32 load(const int8_t* from) {
    const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return {_mm256_cvtepi32_ps(wide)};
}

// 2 * kWidth elements: in `even` those at places 0, 2, 4 .., in `odd` the others.
inline void load_even_odd(const BFloat16* from, F32& even, F32& odd) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd.v = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline void store(float* to, F32 x) { _mm256_storeu_ps(to, x.v); }

// Rounded to bfloat16, whose bits are the upper half of each lane; the lower half is arbitrary.
inline __m256i bfloat16_bits(F32 x) {
    const __m256i bits = _mm256_castps_si256(x.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, quiet, nan);
}

inline void store(BFloat16* to, F32 x) {
    const __m256i high = _mm256_srli_epi32(bfloat16_bits(x), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}

inline Pair store_pair(BFloat16* to, Pair x) {
    const __m256i first = bfloat16_bits(x.first), second = bfloat16_bits(x.second);
    const __m256i both = _mm256_blend_epi16(_mm256_srli_epi32(first, 16), second, 0xaa);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), both);
    const __m256i high = _mm256_set1_epi32(-0x10000);
    return {{_mm256_castsi256_ps(_mm256_and_si256(first, high))},
            {_mm256_castsi256_ps(_mm256_and_si256(second, high))}};
}

// To the nearest integer, ties to even, which must be in -128 .. 127.
inline void store(int8_t* to, F32 x) {
    const __m256i wide = _mm256_cvtps_epi32(x.v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

inline F32 add(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F32 sub(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F32 mul(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F32 div(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 abs(F32 x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)}; }

// To the nearest integer, ties to even.
inline F32 round(F32 x) {
    return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// x * 2**n for integers n in -126 .. 127.
inline F32 scale_by_power_of_two(F32 x, F32 n) {
    const __m256i exponent = _mm256_slli_epi32(
        _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(exponent))};
}

// Zero in the lanes where a < b, else x.
inline F32 zero_where_less(F32 a, F32 b, F32 x) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ), x.v)};
}

// Lane j of row i to lane i of row j.
inline void transpose(F32 (&rows)[kWidth]) {
    __m256 pairs[8], quads[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            quads[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0x44);
            quads[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        rows[i].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
        rows[i + 4].v = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
}

inline float sum(F32 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// The sums of a, b, c and d, side by side.
inline void store_sums(float* to, F32 a, F32 b, F32 c, F32 d) {
    const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

inline float max_of(F32 x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

// Bit i is set where a >= b in lane i; not for NaN.
inline uint32_t at_least(F32 a, F32 b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}

// x in the lanes where a >= b, else zero.
inline F32 where_at_least(F32 a, F32 b, F32 x) {
    return {_mm256_and_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ), x.v)};
}

// Stores the lanes whose bit is set next to each other; the memory of kWidth lanes is written.
inline void compress_store(float* to, F32 x, uint32_t lanes) {
    const uint64_t bytes = _pdep_u64(lanes, 0x0101010101010101) * 0xff;
    const uint64_t order = _pext_u64(0x0706050403020100, bytes);
    const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(order)));
    _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(x.v, wide));
}

// Integers of 32 bits, which wrap.
struct I32 {
    __m256i v;
};

inline I32 set1_int(int32_t x) { return {_mm256_set1_epi32(x)}; }
inline I32 lane_numbers() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
inline I32 add(I32 a, I32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline I32 mul(I32 a, I32 b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
inline I32 bit_and(I32 a, I32 b) { return {_mm256_and_si256(a.v, b.v)}; }
inline I32 bit_xor(I32 a, I32 b) { return {_mm256_xor_si256(a.v, b.v)}; }
template <int count>
I32 shift_right(I32 x) { return {_mm256_srli_epi32(x.v, count)}; }  // zeros come in
inline F32 to_float(I32 x) { return {_mm256_cvtepi32_ps(x.v)}; }
inline I32 bits_of(F32 x) { return {_mm256_castps_si256(x.v)}; }

}  // namespace trunkline
