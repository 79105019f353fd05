// Products with int4 weights: with int8 activations exact in int32 within a group of inputs, and in
// float32 across groups; with activations as they are, all in float32.
#include "gemm_tile.h"

namespace trunkline {
namespace {

constexpr float kSymmetricZero = 8.0f;

#if defined(__AVX512VNNI__) || defined(TRUNKLINE_EMULATED_AVX512)

Int add_dot(Int acc, Int weight, Int factor) { return _mm512_dpbusd_epi32(acc, weight, factor); }
Int high_codes(Int step) { return bit_and(_mm512_srli_epi32(step, 4), 0x0f0f0f0fu); }
F32 load_zeros(const uint8_t* from) {
    return to_float(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

#else

// Onto sums in int16.
Int add_dot(Int acc, Int weight, Int factor) {
    return in_place(_mm256_add_epi16(acc, _mm256_maddubs_epi16(weight, factor)));
}
Int add_widened(Int acc, Int narrow) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(narrow, _mm256_set1_epi16(1)));
}
Int high_codes(Int step) { return bit_and(_mm256_srli_epi32(step, 4), 0x0f0f0f0fu); }
F32 load_zeros(const uint8_t* from) {
    return to_float(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

#endif

Int low_codes(Int step) { return bit_and(step, 0x0f0f0f0fu); }

template <int kRows, int kPanels>
struct Int4Tile {
    static constexpr int kVecs = kPanels * kVecsPerPanel;
    using Sums = Int[kRows][kVecs];

    static void clear(Sums& sums) {
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
            for (int vec = 0; vec < kVecs; ++vec) sums[row][vec] = zero_int();
    }

    static void add_steps(const TileArgs& args, int64_t first, int64_t count, Sums& sums) {
        const uint32_t* x = args.x + first * 2 * kRows;
        const uint8_t* weight = args.weight + first * kStepBytes;
        const int64_t panel_bytes = args.panel_bytes;
#pragma GCC unroll 1
        for (int64_t step = 0; step < count; ++step) {
            const auto codes = [&](int vec, bool is_high) {
                const int panel = vec / kVecsPerPanel, part = vec % kVecsPerPanel;
                const Int both = load_int(weight + panel * panel_bytes + part * (kWidth * 4));
                return is_high ? high_codes(both) : low_codes(both);
            };
#pragma GCC unroll 2
            for (const bool is_high : {false, true}) {
                const uint32_t* words = x + (is_high ? kRows : 0);
                // What there is less of stays in registers meanwhile.
                if constexpr (kRows < kVecs) {
#pragma GCC unroll 8
                    for (int vec = 0; vec < kVecs; ++vec) {
                        const Int weights = codes(vec, is_high);
#pragma GCC unroll 8
                        for (int row = 0; row < kRows; ++row)
                            sums[row][vec] =
                                add_dot(sums[row][vec], weights, broadcast(words[row]));
                    }
                } else {
                    Int weights[kVecs];
#pragma GCC unroll 8
                    for (int vec = 0; vec < kVecs; ++vec) weights[vec] = codes(vec, is_high);
#pragma GCC unroll 8
                    for (int row = 0; row < kRows; ++row) {
                        const Int factor = broadcast(words[row]);
#pragma GCC unroll 8
                        for (int vec = 0; vec < kVecs; ++vec)
                            sums[row][vec] = add_dot(sums[row][vec], weights[vec], factor);
                    }
                }
            }
            x += 2 * kRows;
            weight += kStepBytes;
        }
    }

    // Sums of codes times x over a group, in int32.
    static void sum_group(const TileArgs& args, int64_t group, Sums& sums) {
        const int64_t first = group * args.group_steps;
        clear(sums);
#if defined(__AVX512VNNI__) || defined(TRUNKLINE_EMULATED_AVX512)
        add_steps(args, first, args.group_steps, sums);
#else
        constexpr int kStepsOfInt16 = 4;  // 8 * 2 * 15 * 127 fits
        for (int64_t step = 0; step < args.group_steps; step += kStepsOfInt16) {
            Sums narrow;
            clear(narrow);
            add_steps(args, first + step, kStepsOfInt16, narrow);
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 8
                for (int vec = 0; vec < kVecs; ++vec)
                    sums[row][vec] = add_widened(sums[row][vec], narrow[row][vec]);
        }
#endif
    }

    // Sums of (code - zero) * x over the group are exact, as they are below 2**24.
    static void scale_group(const TileArgs& args, int64_t group, const Sums& exact) {
        const float* x_sums = args.x_sums + group * kRows;
        const bool adds = args.adds || group > 0;
#pragma GCC unroll 8
        for (int vec = 0; vec < kVecs; ++vec) {
            const int panel = vec / kVecsPerPanel, part = vec % kVecsPerPanel;
            const int64_t at = (panel * args.panel_groups + group) * kPanel + part * kWidth;
            const F32 scale = load(args.scales + at);
            const F32 zeros =
                args.zeros == nullptr ? set1(kSymmetricZero) : load_zeros(args.zeros + at);
            float* to = static_cast<float*>(args.sums) + panel * args.sums_panel + part * kWidth;
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row, to += kPanel) {
                const F32 sum = fma(set1(-x_sums[row]), zeros, to_float(exact[row][vec]));
                store(to, fma(sum, scale, adds ? load(to) : zero()));
            }
        }
    }

    static void run(const TileArgs& args) {
        const int64_t num_groups = args.num_steps / args.group_steps;
        for (int64_t group = 0; group < num_groups; ++group) {
            Sums sums;
            sum_group(args, group, sums);
            scale_group(args, group, sums);
        }
    }
};

template <int... kRows>
constexpr Tiles make_int4_tiles(std::integer_sequence<int, kRows...>) {
    return {{{Int4Tile<kRows + 1, 1>::run, Int4Tile<kRows + 1, panels_for(kRows + 1)>::run}...}};
}

template <int shift>
Int shift_right(Int x) {
#if defined(__AVX512F__) || defined(TRUNKLINE_EMULATED_AVX512)
    return _mm512_srli_epi32(x, shift);
#else
    return _mm256_srli_epi32(x, shift);
#endif
}

// The weights of 8 inputs, (code - zero) * scale.
template <int... kInput>
void dequantize(Int codes, F32 zero, F32 scale, float* to, std::integer_sequence<int, kInput...>) {
    constexpr auto place = [](int input) { return input % 4 * 8 + input / 4 * 4; };
    (store(to + kInput * kPanel,
           (to_float(bit_and(shift_right<place(kInput)>(codes), 0xfu)) - zero) * scale),
     ...);
}

void expand_int4(const ExpandArgs& args) {
    auto* to = reinterpret_cast<float*>(args.to);
    for (int64_t step = 0; step < args.num_steps; ++step) {
        const int64_t table = step / args.group_steps * kPanel;
        for (int part = 0; part < kPanel; part += kWidth) {
            const int64_t at = table + part;
            const F32 zero =
                args.zeros == nullptr ? set1(kSymmetricZero) : load_zeros(args.zeros + at);
            dequantize(load_int(args.steps + step * kStepBytes + part * 4), zero,
                       load(args.scales + at), to + part, std::make_integer_sequence<int, 8>());
        }
        to += 8 * kPanel;
    }
}

constexpr Tiles kTiles = make_int4_tiles(std::make_integer_sequence<int, kMaxRows>());
constexpr Method kInt8 = {
    WeightFormat::int4, XFormat::int8_quads, 2, &kTiles, nullptr, 1, true, 0};

const Method kFloat32 = {
    WeightFormat::int4, XFormat::float32, 8, &kFloat32Tiles, expand_int4, 8};

}  // namespace

const Methods kInt4Methods = {kFloat32, kFloat32};
const Methods kInt4Int8Methods = {kInt8, kInt8};

}  // namespace trunkline

TRUNKLINE_KERNEL(linear_int4, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kInt4Methods);
}

TRUNKLINE_KERNEL(linear_int4_int8, trunkline::LinearArgs) {
    trunkline::multiply(*args, trunkline::kInt4Int8Methods);
}
