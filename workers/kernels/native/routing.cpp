// Which experts each row goes to, and with what weight.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernel.h"
#include "pool.h"
#include "scratch.h"
#include "vec.h"

namespace trunkline {
namespace {

// Logits that a thread looks through in some 10 microseconds.
constexpr int64_t kChunkLogits = 16 * 1024;

struct RouteArgs {
    const float* logits;      // [num_rows, num_experts]
    const int64_t* num_real;  // rows from this one on, of the whole batch, are padding
    const int32_t* copies;    // [num_experts]: how many slots hold an expert
    const int32_t* places;    // [num_experts, max_copies]: which ones
    int64_t* load;            // [num_experts]: rows that each has got; added to
    int32_t* slots;           // [num_rows, top_k], -1 for padding
    float* weights;           // [num_rows, top_k]
    int64_t num_rows;
    int64_t num_experts;
    int64_t top_k;
    int64_t max_copies;
    int64_t first_row;        // which row of the batch is the first here
    int32_t renormalises;     // weights sum to 1 over a row's experts, not over all
};

int64_t num_real_rows(const RouteArgs& args) {
    return std::clamp<int64_t>(*args.num_real - args.first_row, 0, args.num_rows);
}

// The largest values in descending order, of equal ones the first.
void choose(const float* logits, int64_t count, int64_t top_k, int32_t* chosen) {
    int64_t found = 0;
    for (int64_t expert = 0; expert < count; ++expert) {
        if (found == top_k && !(logits[expert] > logits[chosen[top_k - 1]])) continue;
        int64_t at = found < top_k ? found++ : top_k - 1;
        for (; at > 0 && logits[expert] > logits[chosen[at - 1]]; --at)
            chosen[at] = chosen[at - 1];
        chosen[at] = static_cast<int32_t>(expert);
    }
}

// In place, and their sum. What is padded to whole vectors must be -infinity.
float exponentials(float* values, int64_t padded, float most) {
    F32 total = zero();
    for (int64_t i = 0; i < padded; i += kWidth) {
        const F32 value = exp(load(values + i) - set1(most));
        store(values + i, value);
        total = total + value;
    }
    return sum(total);
}

void route_row(const RouteArgs& args, int64_t row) {
    thread_local Scratch memory;
    const float* logits = args.logits + row * args.num_experts;
    int32_t* slots = args.slots + row * args.top_k;
    float* weights = args.weights + row * args.top_k;
    if (row >= num_real_rows(args)) {
        std::fill(slots, slots + args.top_k, -1);
        std::fill(weights, weights + args.top_k, 0.0f);
        return;
    }
    if (std::isfinite(largest_magnitude(logits, args.num_experts))) {
        choose(logits, args.num_experts, args.top_k, slots);
        const int64_t count = args.renormalises ? args.top_k : args.num_experts;
        const int64_t padded = (count + kWidth - 1) / kWidth * kWidth;
        auto* values = memory.get<float>(static_cast<size_t>(padded) * sizeof(float));
        std::fill(values + count, values + padded, -std::numeric_limits<float>::infinity());
        for (int64_t i = 0; i < count; ++i)
            values[i] = args.renormalises ? logits[slots[i]] : logits[i];
        const float total = exponentials(values, padded, logits[slots[0]]);
        for (int64_t i = 0; i < args.top_k; ++i)
            weights[i] = values[args.renormalises ? i : slots[i]] / total;
    } else {
        for (int64_t i = 0; i < args.top_k; ++i) slots[i] = static_cast<int32_t>(i);
        std::fill(weights, weights + args.top_k, std::numeric_limits<float>::quiet_NaN());
    }
}

void route(const RouteArgs& args) {
    const int64_t together = std::max<int64_t>(kChunkLogits / args.num_experts, 1);
    parallel_for((args.num_rows + together - 1) / together, [&](int64_t chunk) {
        const int64_t end = std::min((chunk + 1) * together, args.num_rows);
        for (int64_t row = chunk * together; row < end; ++row) route_row(args, row);
    });
    // From experts to slots; rows take turns on an expert's copies.
    for (int64_t row = 0; row < num_real_rows(args); ++row)
        for (int64_t i = 0; i < args.top_k; ++i) {
            int32_t& slot = args.slots[row * args.top_k + i];
            const int64_t expert = slot;
            ++args.load[expert];
            slot = args.places[expert * args.max_copies + row % args.copies[expert]];
        }
}

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(route, trunkline::RouteArgs) { trunkline::route(*args); }
