// The threads that all kernels share.
#pragma once

#include <cstdint>
#include <type_traits>

namespace trunkline {

// Calls body(context, chunk) once for each chunk in [0, num_chunks), in any order and on any thread.
// Threads take chunks as they become free, so that one which the system has descheduled holds up
// its own chunk, or the start of the next call if it was about to leave, but no other work. Calls from within a body, and from a second thread, run serially.
void run_chunks(int64_t num_chunks, void (*body)(void*, int64_t), void* context);

template <class Body>
void parallel_for(int64_t num_chunks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_chunks(
        num_chunks,
        [](void* context, int64_t chunk) { (*static_cast<Plain*>(context))(chunk); },
        const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace trunkline
