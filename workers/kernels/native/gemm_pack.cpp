// From rows of weights to panels.
#include <cstring>

#include "gemm.h"
#include "pool.h"

namespace trunkline {
namespace {

struct PackLinearArgs {
    const void* weight;  // [num_outputs, num_inputs]; int4: one code in a byte
    uint8_t* packed;     // [panels][steps][64]
    int64_t num_outputs;
    int64_t num_inputs;
    WeightFormat format;
    int32_t gated;       // panels of the two halves of the outputs take turns
};

constexpr int bytes_per_input(WeightFormat format) {
    switch (format) {
        case WeightFormat::float32: return 4;
        case WeightFormat::bfloat16: return 2;
        default: return 1;
    }
}

uint32_t word_at(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

// One output's part of a step: 4 bytes, or 8 codes of int4.
uint32_t step_word(const uint8_t* from, bool is_int4) {
    return is_int4 ? word_at(from) | word_at(from + 4) << 4 : word_at(from);
}

// The rows that a panel holds: from `first`, `count` of them; the rest is padding.
struct PanelRows {
    int64_t first;
    int64_t count;
};

PanelRows rows_of(const PackLinearArgs& args, int64_t panel) {
    const int64_t half = args.gated ? args.num_outputs / 2 : args.num_outputs;
    const int64_t within = (args.gated ? panel / 2 : panel) * kPanel;
    const int64_t first = args.gated && panel % 2 ? half + within : within;
    const int64_t left = half - within;
    return {first, left < kPanel ? left : kPanel};
}

void pack_panel(const PackLinearArgs& args, int64_t panel) {
    const bool is_int4 = args.format == WeightFormat::int4;
    const int64_t row_bytes = args.num_inputs * bytes_per_input(args.format);
    const int64_t step_bytes = inputs_per_step(args.format) * bytes_per_input(args.format);
    const int64_t num_steps = (row_bytes + step_bytes - 1) / step_bytes;
    const auto* weight = static_cast<const uint8_t*>(args.weight);
    auto* out = reinterpret_cast<uint32_t*>(args.packed + panel * num_steps * kStepBytes);
    const auto [first, count] = rows_of(args, panel);
    const uint8_t* from = weight + first * row_bytes;
    const int64_t num_whole = row_bytes / step_bytes;
    for (int64_t step = 0; step < num_whole; ++step, from += step_bytes) {
        for (int64_t row = 0; row < count; ++row)
            *out++ = step_word(from + row * row_bytes, is_int4);
        for (int64_t row = count; row < kPanel; ++row) *out++ = 0;
    }
    if (num_whole == num_steps) return;
    for (int64_t row = 0; row < kPanel; ++row) {
        uint8_t last[8] = {};
        if (row < count) std::memcpy(last, from + row * row_bytes, row_bytes % step_bytes);
        *out++ = step_word(last, is_int4);
    }
}

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(pack_linear, trunkline::PackLinearArgs) {
    using namespace trunkline;
    const int64_t half = args->gated ? args->num_outputs / 2 : args->num_outputs;
    const int64_t num_panels = (half + kPanel - 1) / kPanel * (args->gated ? 2 : 1);
    parallel_for(num_panels, [&](int64_t panel) { pack_panel(*args, panel); });
}
