// What products can reach at best: fused multiply-adds on registers alone.
#include "gemm_tile.h"
#include "pool.h"

namespace trunkline {
namespace {

struct FmaPeakArgs {
    int64_t num_chunks;
    int64_t repeats;   // in each chunk
    float* sums;       // [num_chunks], so that the work cannot be left out
    int64_t* flops;    // takes the operations of all chunks
};

float sum_chunk(int64_t repeats) {
    const F32 factor = set1(0.5f);
    F32 acc[kMaxAccumulators];
    for (auto& each : acc) each = factor;
    for (int64_t repeat = 0; repeat < repeats; ++repeat)
#pragma GCC unroll 24
        for (int i = 0; i < kMaxAccumulators; ++i) acc[i] = fma_in_place(factor, factor, acc[i]);
    F32 total = zero();
    for (const auto& each : acc) total = total + each;
    return sum(total);
}

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(fma_peak, trunkline::FmaPeakArgs) {
    constexpr int64_t of_repeat = trunkline::kMaxAccumulators * trunkline::kWidth * 2;
    *args->flops = args->num_chunks * args->repeats * of_repeat;
    trunkline::parallel_for(args->num_chunks, [args](int64_t chunk) {
        args->sums[chunk] = trunkline::sum_chunk(args->repeats);
    });
}
