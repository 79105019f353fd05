#include "shared_wait.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <ctime>

#include <immintrin.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernel.h"

namespace trunkline {
namespace {

// Turns of the pause loop, some 4 microseconds. More would gain nothing where each rank has a core to
// itself, as giving it up is over at once there; and ranks that share one, where the system often
// puts processes that wake each other, would each spend their turn in vain.
constexpr int kSpins = 200;

// From then on, until the waiter sleeps, others may have its core. Waking up takes some 50
// microseconds, so that shorter waits are better spent awake.
constexpr int64_t kYieldNs = 500'000;

// The longest sleep before looking whether the segment has failed, which wakes nobody.
constexpr int64_t kNapNs = 5'000'000;

int64_t now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

// std::atomic's wait is for threads of one process only. False if the time was up.
bool futex_wait(const std::atomic<uint32_t>* word, uint32_t expected, int64_t timeout_ns) {
    const timespec timeout{timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, nullptr, 0) == 0 || errno != ETIMEDOUT;
}

void futex_wake(const std::atomic<uint32_t>* word) {
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void sleep_on(Counter& counter, uint32_t target, int64_t timeout_ns) {
    // In this order, and `publish` in the other: one of the two sees what the other has written.
    counter.num_asleep.fetch_add(1, std::memory_order_seq_cst);
    const uint32_t seen = counter.value.load(std::memory_order_seq_cst);
    if (static_cast<int32_t>(seen - target) < 0) futex_wait(&counter.value, seen, timeout_ns);
    counter.num_asleep.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace

void SegmentHeader::fail(Failure reason, uint32_t rank) {
    uint32_t none = 0;
    failure.compare_exchange_strong(none, static_cast<uint32_t>(reason) + 256 * rank);
}

void Counter::publish(uint32_t new_value) {
    value.store(new_value, std::memory_order_seq_cst);
    if (num_asleep.load(std::memory_order_seq_cst) != 0) futex_wake(&value);
}

bool wait_for(SegmentHeader& segment, Counter& counter, uint32_t target, int64_t limit_ns, uint32_t rank) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (counter.has_reached(target)) return true;
        _mm_pause();
    }
    const int64_t start = now_ns();
    while (!counter.has_reached(target)) {
        if (segment.has_failed()) return false;
        const int64_t waited = now_ns() - start;
        if (waited >= limit_ns) {
            segment.fail(Failure::late, rank);
            return false;
        }
        if (waited < kYieldNs)
            sched_yield();
        else
            sleep_on(counter, target, std::min(kNapNs, limit_ns - waited));
    }
    return true;
}

}  // namespace trunkline

// Ends all waits within a segment, now and later.
TRUNKLINE_EXPORT void trunkline_abort_segment(void* segment) {
    static_cast<trunkline::SegmentHeader*>(segment)->fail(trunkline::Failure::aborted, 0);
}

// Sleeps while the word is as expected, until someone wakes the word, or the time is up: only then
// the result is 0. May return early. Works between processes.
TRUNKLINE_EXPORT int32_t trunkline_futex_wait(void* word, uint32_t expected, int64_t timeout_ns) {
    return trunkline::futex_wait(static_cast<std::atomic<uint32_t>*>(word), expected, timeout_ns);
}

// Wakes all that sleep on the word.
TRUNKLINE_EXPORT void trunkline_futex_wake(void* word) {
    trunkline::futex_wake(static_cast<std::atomic<uint32_t>*>(word));
}
