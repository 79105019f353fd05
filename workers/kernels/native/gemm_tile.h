// The innermost loops of all products but int4's.
//
// An Arithmetic says what a step of weights is: words_per_step vectors of `Weight`, word j of which
// is multiplied with word j of the activations onto an `Acc`.
#pragma once

#include <utility>

#include "gemm.h"

namespace trunkline {

#if defined(__AVX512F__) || defined(TRUNKLINE_EMULATED_AVX512)
using Int = __m512i;
inline Int load_int(const void* from) { return _mm512_loadu_si512(from); }
inline Int broadcast(uint32_t word) { return _mm512_set1_epi32(static_cast<int>(word)); }
inline void store_int(int32_t* to, Int x) { _mm512_storeu_si512(to, x); }
inline Int zero_int() { return _mm512_setzero_si512(); }
inline F32 as_float(Int x) { return {_mm512_castsi512_ps(x)}; }
inline F32 to_float(Int x) { return {_mm512_cvtepi32_ps(x)}; }
inline Int sub_int(Int a, Int b) { return _mm512_sub_epi32(a, b); }
template <int bits>
inline Int shift_left(Int x) { return _mm512_slli_epi32(x, bits); }
inline Int bit_and(Int a, uint32_t mask) { return _mm512_and_si512(a, broadcast(mask)); }
#else
using Int = __m256i;
inline Int load_int(const void* from) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
inline Int broadcast(uint32_t word) { return _mm256_set1_epi32(static_cast<int>(word)); }
inline void store_int(int32_t* to, Int x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x);
}
inline Int zero_int() { return _mm256_setzero_si256(); }
inline F32 as_float(Int x) { return {_mm256_castsi256_ps(x)}; }
inline F32 to_float(Int x) { return {_mm256_cvtepi32_ps(x)}; }
inline Int sub_int(Int a, Int b) { return _mm256_sub_epi32(a, b); }
template <int bits>
inline Int shift_left(Int x) { return _mm256_slli_epi32(x, bits); }
inline Int bit_and(Int a, uint32_t mask) { return _mm256_and_si256(a, broadcast(mask)); }
#endif

// With AVX2's 16 registers, g++ has to be kept from reordering what goes onto accumulators, and
// from letting these wander: it would run out of them.
#if defined(__AVX512F__) || defined(TRUNKLINE_EMULATED_AVX512)
inline Int in_place(Int x) { return x; }
inline F32 fma_in_place(F32 a, F32 b, F32 acc) { return fma(a, b, acc); }
#else
inline Int in_place(Int x) {
    asm("" : "+x"(x));
    return x;
}
inline F32 fma_in_place(F32 a, F32 b, F32 acc) {
    asm("vfmadd231ps %1, %2, %0" : "+x"(acc.v) : "x"(a.v), "x"(b.v));
    return acc;
}
#endif

// Sums in float32.
struct FloatSums {
    using Acc = F32;
    using Element = float;
    static Acc start() { return zero(); }
    static Acc read(const float* from) { return load(from); }
    static void write(float* to, Acc x) { store(to, x); }
};

// Sums in int32, exact.
struct IntSums {
    struct Acc {
        Int v;
    };
    using Element = int32_t;
    static Acc start() { return {zero_int()}; }
    static Acc read(const int32_t* from) { return {load_int(from)}; }
    static void write(int32_t* to, Acc x) { store_int(to, x.v); }
};

template <class Arithmetic, int kRows, int kPanels>
void tile(const TileArgs& args) {
    using Element = typename Arithmetic::Element;
    constexpr int kVecs = kPanels * kVecsPerPanel;
    constexpr int kWords = Arithmetic::words_per_step;
    typename Arithmetic::Acc acc[kRows][kVecs];
    auto* sums = static_cast<Element*>(args.sums);
    const auto at = [&](int row, int vec) {
        const int panel = vec / kVecsPerPanel, part = vec % kVecsPerPanel;
        return sums + panel * args.sums_panel + row * kPanel + part * kWidth;
    };
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
        for (int vec = 0; vec < kVecs; ++vec)
            acc[row][vec] = args.adds ? Arithmetic::read(at(row, vec)) : Arithmetic::start();

    const uint32_t* x = args.x;
    const uint8_t* weight = args.weight;
    const uint8_t* ahead = args.ahead;
    const int64_t panel_bytes = args.panel_bytes, ahead_step = args.ahead_step;
    for (int64_t step = 0; step < args.num_steps; ++step) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
        ahead += ahead_step;
#pragma GCC unroll 4
        for (int word = 0; word < kWords; ++word) {
            const auto weights = [&](int vec) {
                const int panel = vec / kVecsPerPanel, part = vec % kVecsPerPanel;
                return Arithmetic::weight(
                    weight + panel * panel_bytes + part * (kWidth * 4), word);
            };
            // What there is less of stays in registers meanwhile.
            if constexpr (kRows < kVecs) {
                decltype(Arithmetic::factor(0u)) factors[kRows];
#pragma GCC unroll 8
                for (int row = 0; row < kRows; ++row)
                    factors[row] = Arithmetic::factor(x[word * kRows + row]);
#pragma GCC unroll 8
                for (int vec = 0; vec < kVecs; ++vec) {
                    const auto w = weights(vec);
#pragma GCC unroll 8
                    for (int row = 0; row < kRows; ++row)
                        acc[row][vec] = Arithmetic::dot(acc[row][vec], w, factors[row]);
                }
            } else {
                decltype(Arithmetic::weight(weight, 0)) w[kVecs];
#pragma GCC unroll 8
                for (int vec = 0; vec < kVecs; ++vec) w[vec] = weights(vec);
#pragma GCC unroll 8
                for (int row = 0; row < kRows; ++row) {
                    const auto factor = Arithmetic::factor(x[word * kRows + row]);
#pragma GCC unroll 8
                    for (int vec = 0; vec < kVecs; ++vec)
                        acc[row][vec] = Arithmetic::dot(acc[row][vec], w[vec], factor);
                }
            }
        }
        x += kWords * kRows;
        weight += kStepBytes;
    }
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
        for (int vec = 0; vec < kVecs; ++vec) Arithmetic::write(at(row, vec), acc[row][vec]);
}

template <class Arithmetic, int... kRows>
constexpr Tiles make_tiles(std::integer_sequence<int, kRows...>) {
    return {{{tile<Arithmetic, kRows + 1, 1>,
              tile<Arithmetic, kRows + 1, panels_for(kRows + 1)>}...}};
}

template <class Arithmetic>
constexpr Tiles tiles_of = make_tiles<Arithmetic>(std::make_integer_sequence<int, kMaxRows>());

struct Float32Arithmetic : FloatSums {
    static constexpr int words_per_step = 1;
    static F32 weight(const uint8_t* step, int) {
        return load(reinterpret_cast<const float*>(step));
    }
    static F32 factor(uint32_t word) { return as_float(broadcast(word)); }
    static F32 dot(F32 acc, F32 weight, F32 factor) {
        return fma_in_place(weight, factor, acc);
    }
};

extern const Tiles kFloat32Tiles;

}  // namespace trunkline
