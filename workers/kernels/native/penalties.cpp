// What a sequence's own tokens do to one row of logits, in place.
#include "kernel.h"

namespace {

struct PenalizeArgs {
    float* logits;
    const int64_t* seen;    // distinct tokens of the sequence
    const int64_t* output;  // distinct ones that were sampled
    const float* counts;    // and how often
    int64_t num_seen;
    int64_t num_output;
    float repetition;
    float frequency;
    float presence;
};

}  // namespace

TRUNKLINE_KERNEL(penalize, PenalizeArgs) {
    for (int64_t i = 0; i < args->num_seen; ++i) {
        float& logit = args->logits[args->seen[i]];
        logit = logit > 0.0f ? logit / args->repetition : logit * args->repetition;
    }
    for (int64_t i = 0; i < args->num_output; ++i)
        args->logits[args->output[i]] -= args->frequency * args->counts[i] + args->presence;
}
