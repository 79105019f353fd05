// Takes the place of the compiler's <immintrin.h>, to run AVX512 code (F, BW, DQ, VL, VNNI, BF16) on
// processors that have AVX2 only: the compiler's own headers up to AVX2, then SIMDe's emulation of
// AVX512, then what SIMDe 0.7 lacks, lane by lane. For g++; speed does not matter here.
//
// An intrinsic that is missing here fails to compile as undeclared: add it below.
#pragma once

// The compiler's parts of <immintrin.h>, without those that would declare AVX512.
#define _IMMINTRIN_H_INCLUDED
#include <x86gprintrin.h>

#include <mmintrin.h>
#include <xmmintrin.h>
#include <emmintrin.h>
#include <pmmintrin.h>
#include <tmmintrin.h>
#include <smmintrin.h>
#include <wmmintrin.h>
#include <avxintrin.h>
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

using __mmask8 = uint8_t;
using __mmask16 = uint16_t;
using __mmask32 = uint32_t;
using __mmask64 = uint64_t;

namespace emulation {

template <class T, class V>
std::array<T, sizeof(V) / sizeof(T)> lanes(V vector) {
    std::array<T, sizeof(V) / sizeof(T)> result;
    std::memcpy(result.data(), &vector, sizeof vector);
    return result;
}

template <class V, class T, std::size_t n>
V vector(const std::array<T, n>& lanes) {
    static_assert(sizeof(V) == sizeof lanes);
    V result;
    std::memcpy(&result, lanes.data(), sizeof result);
    return result;
}

// Each lane x of type From as function(x); Out may have fewer or more bytes than In.
template <class Out, class From, class In, class Function>
Out map(In x, Function function) {
    constexpr std::size_t n = sizeof(In) / sizeof(From);
    const auto from = lanes<From>(x);
    std::array<decltype(function(from[0])), n> to;
    for (std::size_t i = 0; i < n; ++i) to[i] = function(from[i]);
    return vector<Out>(to);
}

template <class To, class From>
To truncate(From x) { return static_cast<To>(x); }

template <class To, class From>
To saturate(From x) {
    const auto low = static_cast<From>(std::numeric_limits<To>::min());
    const auto high = static_cast<From>(std::numeric_limits<To>::max());
    return static_cast<To>(std::clamp(x, low, high));
}

// As the processor converts: out of range and NaN give the least integer.
inline int32_t to_int(float x) {
    return x >= -0x1p31f && x < 0x1p31f ? static_cast<int32_t>(x) : INT32_MIN;
}
inline int32_t nearest_int(float x) { return to_int(std::nearbyintf(x)); }

// VCVTNEPS2BF16: to nearest even; subnormal numbers count as zero.
inline uint16_t to_bfloat16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
    if ((bits & 0x7f800000) == 0) return static_cast<uint16_t>(bits >> 16 & 0x8000);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bfloat16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

// Folds the upper half onto the lower one until one lane is left, as the compiler's reductions do.
template <class T, class V, class Function>
T reduce(V x, Function function) {
    auto all = lanes<T>(x);
    for (std::size_t half = all.size() / 2; half > 0; half /= 2)
        for (std::size_t i = 0; i < half; ++i) all[i] = function(all[i], all[i + half]);
    return all[0];
}

template <class V, class T, class Mask>
V load(V otherwise, Mask mask, const void* from) {
    auto to = lanes<T>(otherwise);
    for (std::size_t i = 0; i < to.size(); ++i)
        if (mask >> i & 1) std::memcpy(&to[i], static_cast<const T*>(from) + i, sizeof(T));
    return vector<V>(to);
}

template <class T, class V, class Mask>
void store(void* to, Mask mask, V x) {
    const auto from = lanes<T>(x);
    for (std::size_t i = 0; i < from.size(); ++i)
        if (mask >> i & 1) std::memcpy(static_cast<T*>(to) + i, &from[i], sizeof(T));
}

template <class Mask, class T, class V, class Function>
Mask compare(V a, V b, Function function) {
    const auto left = lanes<T>(a), right = lanes<T>(b);
    Mask mask = 0;
    for (std::size_t i = 0; i < left.size(); ++i)
        mask |= static_cast<Mask>(static_cast<Mask>(function(left[i], right[i])) << i);
    return mask;
}

template <class T>
bool integers_compare(T a, T b, int predicate) {
    switch (predicate) {
        case 0: return a == b;
        case 1: return a < b;
        case 2: return a <= b;
        case 3: return false;
        case 4: return a != b;
        case 5: return a >= b;
        case 6: return a > b;
        default: return true;
    }
}

}  // namespace emulation

// Conversions between types of lanes.

#define EMULATE(name, Out, In, From, function) \
    inline Out name(In x) { return emulation::map<Out, From>(x, function); }

EMULATE(_mm512_cvtepu8_epi16, __m512i, __m256i, uint8_t, (emulation::truncate<int16_t, uint8_t>))
EMULATE(_mm512_cvtepi8_epi32, __m512i, __m128i, int8_t, (emulation::truncate<int32_t, int8_t>))
EMULATE(_mm512_cvtepu8_epi32, __m512i, __m128i, uint8_t, (emulation::truncate<int32_t, uint8_t>))
EMULATE(_mm512_cvtepi16_epi32, __m512i, __m256i, int16_t, (emulation::truncate<int32_t, int16_t>))
EMULATE(_mm512_cvtepu16_epi32, __m512i, __m256i, uint16_t, (emulation::truncate<int32_t, uint16_t>))
EMULATE(_mm512_cvtepi32_epi64, __m512i, __m256i, int32_t, (emulation::truncate<int64_t, int32_t>))
EMULATE(_mm512_cvtepu32_epi64, __m512i, __m256i, uint32_t, (emulation::truncate<int64_t, uint32_t>))
EMULATE(_mm512_cvtepi32_epi16, __m256i, __m512i, int32_t, (emulation::truncate<int16_t, int32_t>))
EMULATE(_mm512_cvtepi32_epi8, __m128i, __m512i, int32_t, (emulation::truncate<int8_t, int32_t>))
EMULATE(_mm512_cvtusepi32_epi8, __m128i, __m512i, uint32_t, (emulation::saturate<uint8_t, uint32_t>))
EMULATE(_mm512_cvtusepi32_epi16, __m256i, __m512i, uint32_t,
        (emulation::saturate<uint16_t, uint32_t>))
EMULATE(_mm256_cvtepi32_epi16, __m128i, __m256i, int32_t, (emulation::truncate<int16_t, int32_t>))
EMULATE(_mm256_cvtepi16_epi8, __m128i, __m256i, int16_t, (emulation::truncate<int8_t, int16_t>))
EMULATE(_mm512_cvtepi32_ps, __m512, __m512i, int32_t, (emulation::truncate<float, int32_t>))
EMULATE(_mm512_cvtepu32_ps, __m512, __m512i, uint32_t, (emulation::truncate<float, uint32_t>))
EMULATE(_mm512_cvtps_epi32, __m512i, __m512, float, emulation::nearest_int)
EMULATE(_mm512_cvttps_epi32, __m512i, __m512, float, emulation::to_int)
EMULATE(_mm512_cvtps_pd, __m512d, __m256, float, (emulation::truncate<double, float>))
EMULATE(_mm512_cvtpd_ps, __m256, __m512d, double, (emulation::truncate<float, double>))
EMULATE(_mm512_cvtepi32_pd, __m512d, __m256i, int32_t, (emulation::truncate<double, int32_t>))
EMULATE(_mm512_cvtneps_pbh, __m256bh, __m512, float, emulation::to_bfloat16)
EMULATE(_mm256_cvtneps_pbh, __m128bh, __m256, float, emulation::to_bfloat16)
EMULATE(_mm512_cvtpbh_ps, __m512, __m256bh, uint16_t, emulation::from_bfloat16)
EMULATE(_mm512_cvtph_ps, __m512, __m256i, uint16_t, [](uint16_t x) { return _cvtsh_ss(x); })

#undef EMULATE

inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
    const std::array<__m256bh, 2> halves{_mm512_cvtneps_pbh(low), _mm512_cvtneps_pbh(high)};
    return emulation::vector<__m512bh>(halves);
}

// Arithmetic, and moves of lanes.

inline __m512i _mm512_srai_epi32(__m512i x, unsigned count) {
    return emulation::map<__m512i, int32_t>(x, [=](int32_t lane) { return lane >> std::min(count, 31u); });
}

inline __m512 _mm512_rcp14_ps(__m512 x) {
    return emulation::map<__m512, float>(x, [](float lane) { return 1.0f / lane; });
}

inline __m512 _mm512_rsqrt14_ps(__m512 x) {
    return emulation::map<__m512, float>(x, [](float lane) { return 1.0f / std::sqrt(lane); });
}

// Lanes of 128 bits: two from `a`, then two from `b`.
inline __m512i _mm512_shuffle_i64x2(__m512i a, __m512i b, int control) {
    const auto left = emulation::lanes<__m128i>(a), right = emulation::lanes<__m128i>(b);
    return emulation::vector<__m512i>(std::array<__m128i, 4>{
        left[control & 3], left[control >> 2 & 3], right[control >> 4 & 3], right[control >> 6 & 3]});
}

inline __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int control) {
    return _mm512_castsi512_ps(
        _mm512_shuffle_i64x2(_mm512_castps_si512(a), _mm512_castps_si512(b), control));
}

// Within lanes of 128 bits.
inline __m512i _mm512_shuffle_epi32(__m512i x, int control) {
    const auto from = emulation::lanes<int32_t>(x);
    auto to = from;
    for (int i = 0; i < 16; ++i) to[i] = from[(i & ~3) + (control >> 2 * (i & 3) & 3)];
    return emulation::vector<__m512i>(to);
}

// Within halves of 256 bits.
inline __m512i _mm512_permutex_epi64(__m512i x, int control) {
    const auto from = emulation::lanes<int64_t>(x);
    auto to = from;
    for (int i = 0; i < 8; ++i) to[i] = from[(i & ~3) + (control >> 2 * (i & 3) & 3)];
    return emulation::vector<__m512i>(to);
}

inline __m256 _mm512_extractf32x8_ps(__m512 x, int index) {
    return emulation::lanes<__m256>(x)[index & 1];
}

inline __m256i _mm512_extracti32x8_epi32(__m512i x, int index) {
    return emulation::lanes<__m256i>(x)[index & 1];
}

inline __m512i _mm512_zextsi256_si512(__m256i x) {
    return emulation::vector<__m512i>(std::array<__m256i, 2>{x, _mm256_setzero_si256()});
}

inline __m512 _mm512_undefined_ps() { return _mm512_setzero_ps(); }
inline float _mm512_cvtss_f32(__m512 x) { return emulation::lanes<float>(x)[0]; }
inline int _mm512_cvtsi512_si32(__m512i x) { return emulation::lanes<int32_t>(x)[0]; }

inline __m512i _mm512_i32gather_epi32(__m512i indices, const void* from, int scale) {
    return emulation::map<__m512i, int32_t>(indices, [=](int32_t index) {
        int32_t lane;
        std::memcpy(&lane, static_cast<const char*>(from) + int64_t{index} * scale, sizeof lane);
        return lane;
    });
}

inline __m512 _mm512_i32gather_ps(__m512i indices, const void* from, int scale) {
    return _mm512_castsi512_ps(_mm512_i32gather_epi32(indices, from, scale));
}

// Loads and stores of some lanes, and past the caches.

#define EMULATE(prefix, suffix, V, T, Mask, clear)                                      \
    inline V prefix##_mask_loadu_##suffix(V otherwise, Mask mask, const void* from) {   \
        return emulation::load<V, T>(otherwise, mask, from);                            \
    }                                                                                   \
    inline V prefix##_maskz_loadu_##suffix(Mask mask, const void* from) {               \
        return emulation::load<V, T>(clear, mask, from);                                \
    }                                                                                   \
    inline void prefix##_mask_storeu_##suffix(void* to, Mask mask, V x) {               \
        emulation::store<T>(to, mask, x);                                               \
    }

EMULATE(_mm512, ps, __m512, float, __mmask16, _mm512_setzero_ps())
EMULATE(_mm512, epi8, __m512i, int8_t, __mmask64, _mm512_setzero_si512())
EMULATE(_mm512, epi16, __m512i, int16_t, __mmask32, _mm512_setzero_si512())
EMULATE(_mm512, epi32, __m512i, int32_t, __mmask16, _mm512_setzero_si512())
EMULATE(_mm512, epi64, __m512i, int64_t, __mmask8, _mm512_setzero_si512())
EMULATE(_mm256, ps, __m256, float, __mmask8, _mm256_setzero_ps())
EMULATE(_mm256, epi8, __m256i, int8_t, __mmask32, _mm256_setzero_si256())
EMULATE(_mm256, epi16, __m256i, int16_t, __mmask16, _mm256_setzero_si256())
EMULATE(_mm256, epi32, __m256i, int32_t, __mmask8, _mm256_setzero_si256())
EMULATE(_mm, ps, __m128, float, __mmask8, _mm_setzero_ps())
EMULATE(_mm, epi8, __m128i, int8_t, __mmask16, _mm_setzero_si128())
EMULATE(_mm, epi16, __m128i, int16_t, __mmask8, _mm_setzero_si128())
EMULATE(_mm, epi32, __m128i, int32_t, __mmask8, _mm_setzero_si128())

#undef EMULATE

inline void _mm512_stream_ps(void* to, __m512 x) { std::memcpy(to, &x, sizeof x); }
inline void _mm512_stream_si512(void* to, __m512i x) { std::memcpy(to, &x, sizeof x); }

// Reductions over all lanes.

#define EMULATE(name, V, T, expression)                                              \
    inline T _mm512_reduce_##name(V x) {                                             \
        return emulation::reduce<T>(x, [](T a, T b) -> T { return expression; });    \
    }

EMULATE(add_ps, __m512, float, a + b)
EMULATE(max_ps, __m512, float, a > b ? a : b)
EMULATE(min_ps, __m512, float, a < b ? a : b)
EMULATE(add_pd, __m512d, double, a + b)
EMULATE(add_epi32, __m512i, int32_t, static_cast<int32_t>(uint32_t(a) + uint32_t(b)))
EMULATE(add_epi64, __m512i, int64_t, static_cast<int64_t>(uint64_t(a) + uint64_t(b)))
EMULATE(max_epi32, __m512i, int32_t, std::max(a, b))
EMULATE(min_epi32, __m512i, int32_t, std::min(a, b))
EMULATE(max_epu32, __m512i, uint32_t, std::max(a, b))
EMULATE(min_epu32, __m512i, uint32_t, std::min(a, b))
EMULATE(or_epi32, __m512i, int32_t, a | b)
EMULATE(and_epi32, __m512i, int32_t, a & b)

#undef EMULATE

// Comparisons of integers.

#define EMULATE(prefix, suffix, V, T, Mask, predicate, expression)                            \
    inline Mask prefix##_cmp##predicate##_##suffix##_mask(V x, V y) {                         \
        return emulation::compare<Mask, T>(x, y, [](T a, T b) { return expression; });        \
    }

EMULATE(_mm512, epi32, __m512i, int32_t, __mmask16, lt, a < b)
EMULATE(_mm512, epi32, __m512i, int32_t, __mmask16, neq, a != b)
EMULATE(_mm512, epu32, __m512i, uint32_t, __mmask16, lt, a < b)
EMULATE(_mm512, epu32, __m512i, uint32_t, __mmask16, gt, a > b)
EMULATE(_mm512, epu32, __m512i, uint32_t, __mmask16, eq, a == b)

#undef EMULATE

inline __mmask16 _mm512_cmp_epi32_mask(__m512i x, __m512i y, int predicate) {
    return emulation::compare<__mmask16, int32_t>(x, y, [=](int32_t a, int32_t b) {
        return emulation::integers_compare(a, b, predicate);
    });
}

inline __mmask16 _mm512_cmp_epu32_mask(__m512i x, __m512i y, int predicate) {
    return emulation::compare<__mmask16, uint32_t>(x, y, [=](uint32_t a, uint32_t b) {
        return emulation::integers_compare(a, b, predicate);
    });
}

inline __mmask16 _mm512_testn_epi32_mask(__m512i x, __m512i y) {
    return emulation::compare<__mmask16, int32_t>(
        x, y, [](int32_t a, int32_t b) { return (a & b) == 0; });
}
