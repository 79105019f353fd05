// Vectors of float32 lanes, in the widest form that the instruction set has.
//
// kWidth lanes of F32; loads and stores convert bfloat16; the rest is arithmetic. Every kernel is
// written once, over these.
#pragma once

#include <cstdint>
#include <cstring>

namespace trunkline {

struct BFloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline BFloat16 to_bfloat16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline void store_float(float* to, float x) { *to = x; }
inline void store_float(BFloat16* to, float x) { *to = to_bfloat16(x); }

}  // namespace trunkline

#if defined(__AVX512F__) || defined(TRUNKLINE_EMULATED_AVX512)
#include "vec_avx512.h"
#else
#include "vec_avx2.h"
#endif

namespace trunkline {

// 2 * kWidth elements at a time, in an order that depends on the type only: for bfloat16, where it
// takes fewest instructions, even ones and odd ones. A stored pair is returned as it was rounded.
inline Pair load_pair(const float* from) { return {load(from), load(from + kWidth)}; }

inline Pair load_pair(const int8_t* from) { return {load(from), load(from + kWidth)}; }

inline Pair load_pair(const BFloat16* from) {
    Pair both;
    load_even_odd(from, both.first, both.second);
    return both;
}

inline Pair store_pair(float* to, Pair x) {
    store(to, x.first);
    store(to + kWidth, x.second);
    return x;
}

inline F32 operator+(F32 a, F32 b) { return add(a, b); }
inline F32 operator-(F32 a, F32 b) { return sub(a, b); }
inline F32 operator*(F32 a, F32 b) { return mul(a, b); }

inline Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
inline Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
inline Pair operator*(Pair a, F32 b) { return {a.first * b, a.second * b}; }

// e**x for x <= 88; zero below -87; NaN stays NaN. Cephes' reduction and polynomial: about 1 ulp.
inline F32 exp(F32 x) {
    const F32 lowest = set1(-87.3f);
    const F32 clamped = max(lowest, x);
    const F32 n = round(clamped * set1(1.44269504088896341f));
    F32 r = fma(n, set1(-0.693359375f), clamped);
    r = fma(n, set1(2.12194440e-4f), r);
    F32 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = fma(p, r * r, r + set1(1.0f));
    return zero_where_less(x, lowest, scale_by_power_of_two(p, n));
}

// The largest magnitude; NaN if any value is not finite.
inline float largest_magnitude(const float* values, int64_t size) {
    F32 most = zero(), doubt = zero();
    float most_of_rest = 0.0f, doubt_of_rest = 0.0f;
    int64_t i = 0;
    for (; i + kWidth <= size; i += kWidth) {
        most = max(most, abs(load(values + i)));
        doubt = fma(load(values + i), zero(), doubt);
    }
    for (; i < size; ++i) {
        const float magnitude = values[i] < 0.0f ? -values[i] : values[i];
        most_of_rest = magnitude > most_of_rest ? magnitude : most_of_rest;
        doubt_of_rest += values[i] * 0.0f;
    }
    const float vector_most = max_of(most);
    return (vector_most > most_of_rest ? vector_most : most_of_rest) + sum(doubt) + doubt_of_rest;
}

}  // namespace trunkline
