// Products of activations with fixed weights: y[M, N] = x[M, K] w[N, K]^T.
//
// Weights are stored in panels of 16 outputs, the same for every instruction set. A panel is a run
// of steps of 64 bytes, each with the next few inputs of all 16 outputs:
//
//     float32   1 input    [16 outputs][1]
//     bfloat16  2 inputs   [16][2]
//     int8      4 inputs   [16][4]
//     int4      8 inputs   [16][4] bytes, inputs 0..3 in the low halves and 4..7 in the high ones
//
// Activations are laid out to match, in words of 4 bytes: blocks of a few rows, and in them, word
// by word, one word of each row. So all products have the same form: a step of the weights, times
// some words of each row that are broadcast, onto accumulators that stay in registers.
//
// Whatever the number of rows, an output is summed over its inputs in order, in one accumulator:
// a row's result does not depend on its neighbours.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "vec.h"

namespace trunkline {

constexpr int kPanel = 16;
constexpr int kStepBytes = 64;
constexpr int kVecsPerPanel = kPanel / kWidth;

// The accumulators that fit the registers, and how they are best spread over rows and panels.
constexpr int kMaxAccumulators = kWidth == 16 ? 24 : 12;
constexpr int kMaxRows = kWidth == 16 ? 8 : 6;
constexpr int kMaxPanels = 4;

// Panels side by side in one tile of `rows` rows.
constexpr int panels_for(int rows) {
    const int fitting = kMaxAccumulators / (rows * kVecsPerPanel);
    return fitting < kMaxPanels ? fitting : kMaxPanels;
}

// What a code of 1 counts in sums of int8 weights and float32 activations.
constexpr float kInt8Unit = 0x1p24f;

enum class WeightFormat : int32_t { float32 = 0, bfloat16 = 1, int8 = 2, int4 = 3 };

constexpr int inputs_per_step(WeightFormat format) {
    switch (format) {
        case WeightFormat::float32: return 1;
        case WeightFormat::bfloat16: return 2;
        case WeightFormat::int8: return 4;
        case WeightFormat::int4: return 8;
    }
    return 0;
}

// One product. Tables of outputs are padded to whole panels; a gated product's panels are those
// of the gate and of what it gates in turn.
struct LinearArgs {
    const void* x;               // [num_rows, num_inputs]
    const int32_t* rows;         // [num_rows]: row r is x[rows[r]]; or null
    const uint8_t* weight;       // packed
    const float* scales;         // int8: [outputs]; int4: [panels][groups][16]; else null
    const uint8_t* zeros;        // int4: [panels][groups][16], null where all are 8; else null
    const float* bias;           // [outputs] or null
    const int32_t* input_order;  // [num_inputs]: weight[:, k] meets x[:, input_order[k]]; or null
    void* out;                   // [num_rows, num_outputs], half of them if gated
    int64_t num_rows;
    int64_t num_inputs;
    int64_t num_outputs;
    int64_t group_size;          // int4
    DType dtype;                 // of x
    DType out_dtype;
    int32_t gated;               // out = silu(first half of the outputs) * second half
};

// What a tile works on: some rows of x and some panels, over some steps.
struct TileArgs {
    const uint32_t* x;
    const uint8_t* weight;
    int64_t panel_bytes;  // from a panel to the next
    int64_t num_steps;
    void* sums;           // [panels][...][rows][16], float or int32
    int64_t sums_panel;   // elements from a panel to the next
    bool adds;            // to what is in sums; otherwise starts from zero
    const uint8_t* ahead; // where weights are that will be needed soon
    int64_t ahead_step;   // bytes of them for each step
    // int4 only: tables of the first group and panel.
    const float* scales;
    const uint8_t* zeros;
    int64_t panel_groups;  // from a panel to the next, in groups
    const float* x_sums;   // [groups][rows]
    int64_t group_steps;
};

// Steps of one panel to be made into others.
struct ExpandArgs {
    const uint8_t* steps;
    int64_t num_steps;
    uint8_t* to;
    // int4 only, as above.
    const float* scales;
    const uint8_t* zeros;
    int64_t group_steps;
};

using Tile = void (*)(const TileArgs&);

// For each number of rows: one panel, and as many as panels_for says.
struct Tiles {
    Tile of[kMaxRows][2];
};

// How activations are laid out in words.
enum class XFormat { float32, bfloat16_pairs, int8_quads, int16_pairs };

// A way to multiply with a weight format.
struct Method {
    WeightFormat weights;
    XFormat x;
    int words_per_step;
    const Tiles* tiles;
    // Where tiles do not read the stored steps: makes each into `expansion` steps that they do.
    void (*expand)(const ExpandArgs&);
    int expansion;
    // Whether x is made int8, and sums are int32 (int8) or have yet to be scaled (int4).
    bool quantizes_x = false;
    // What is added to the weights' codes to make them unsigned.
    int32_t weight_offset = 0;
};

// The method for few blocks of rows, and the one for many.
struct Methods {
    Method few;
    Method many;
};

// By the arithmetic of weights and, after the underscore, activations.
extern const Methods kFloat32Methods, kBFloat16Methods, kInt8Methods, kInt8Int8Methods,
    kInt4Methods, kInt4Int8Methods;

// One of several products that are computed together.
struct Task {
    LinearArgs args;
    const Methods* methods;
};

// Runs products side by side: all threads have work until the last of them ends.
void multiply_all(const Task* tasks, int64_t count);

void multiply(const LinearArgs& args, const Methods& methods);

}  // namespace trunkline
