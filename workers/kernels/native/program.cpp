// Plays recorded kernel calls one after the other, without Python between them.
#include "kernel.h"

namespace {

struct Call {
    void (*kernel)(const void*);
    const void* args;
};

}  // namespace

TRUNKLINE_EXPORT void trunkline_play(const Call* calls, int64_t num_calls) {
    for (int64_t index = 0; index < num_calls; ++index) calls[index].kernel(calls[index].args);
}
