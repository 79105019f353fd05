// How processes wait for each other in memory that they share.
//
// Words are counted up by one process and waited for by others. Counts wrap: they are compared by
// their difference. What waits does so within a limit: then it marks the segment as failed, and
// nobody waits in it any more.
#pragma once

#include <atomic>
#include <cstdint>

namespace trunkline {

// Why nobody may wait in a segment any more; beside it stands whom it was about. As in Python.
enum class Failure : uint32_t { none = 0, late = 1, aborted = 2, disagreed = 3 };

// What every segment begins with.
struct alignas(64) SegmentHeader {
    std::atomic<uint32_t> failure;  // Failure + 256 * rank; the first one stays

    bool has_failed() const { return failure.load(std::memory_order_acquire) != 0; }
    void fail(Failure reason, uint32_t rank);
};

struct Counter {
    std::atomic<uint32_t> value;
    std::atomic<uint32_t> num_asleep;

    bool has_reached(uint32_t target) const {
        return static_cast<int32_t>(value.load(std::memory_order_acquire) - target) >= 0;
    }

    // What was written before is seen by whoever sees the new value.
    void publish(uint32_t new_value);
};

static_assert(std::atomic<uint32_t>::is_always_lock_free, "shared between processes");

// True once `counter` has reached `target`. False if the segment has failed, which it does if
// `rank`, who counts it up, takes longer than the limit.
bool wait_for(SegmentHeader& segment, Counter& counter, uint32_t target, int64_t limit_ns, uint32_t rank);

}  // namespace trunkline
