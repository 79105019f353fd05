#include "pool.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <immintrin.h>

#include "kernel.h"

namespace trunkline {
namespace {

// Turns of the pause loop, some 50 microseconds: longer than the gap between two kernels of a step,
// much shorter than the one between two steps, in which threads must sleep.
constexpr int kSpins = 2000;

class Pool {
public:
    explicit Pool(int num_workers) {
        for (int index = 0; index < num_workers; ++index)
            workers_.emplace_back([this] { work(); });
    }

    ~Pool() {
        stops_.store(true);
        publish();
        for (auto& worker : workers_) worker.join();
    }

    int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

    void run(int64_t num_chunks, void (*body)(void*, int64_t), void* context) {
        // A worker may still be on its way out of the last job, having found no chunk.
        while (num_inside_.load(std::memory_order_acquire) != 0) _mm_pause();
        body_ = body;
        context_ = context;
        num_chunks_ = num_chunks;
        next_.store(0, std::memory_order_relaxed);
        num_done_.store(0, std::memory_order_relaxed);
        is_open_.store(true, std::memory_order_release);
        publish();
        take_chunks();
        while (num_done_.load(std::memory_order_acquire) != num_chunks) _mm_pause();
        is_open_.store(false, std::memory_order_seq_cst);
    }

private:
    void publish() {
        generation_.fetch_add(1, std::memory_order_seq_cst);
        if (num_asleep_.load(std::memory_order_seq_cst) != 0) generation_.notify_all();
    }

    void take_chunks() {
        for (;;) {
            const int64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
            if (chunk >= num_chunks_) return;
            body_(context_, chunk);
            num_done_.fetch_add(1, std::memory_order_release);
        }
    }

    void work();
    void wait_beyond(uint32_t seen);

    std::vector<std::thread> workers_;
    void (*body_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    int64_t num_chunks_ = 0;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int64_t> num_done_{0};
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::atomic<int> num_asleep_{0};
    alignas(64) std::atomic<int> num_inside_{0};
    std::atomic<bool> is_open_{false};
    std::atomic<bool> stops_{false};
};

thread_local bool is_inside = false;

void Pool::work() {
    is_inside = true;
    uint32_t seen = 0;
    while (true) {
        wait_beyond(seen);
        if (stops_.load()) return;
        seen = generation_.load(std::memory_order_acquire);
        // Counted in before looking whether a job is open: its fields cannot change from then on.
        num_inside_.fetch_add(1, std::memory_order_seq_cst);
        if (is_open_.load(std::memory_order_seq_cst)) take_chunks();
        num_inside_.fetch_sub(1, std::memory_order_release);
    }
}

void Pool::wait_beyond(uint32_t seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
        if (generation_.load(std::memory_order_acquire) != seen) return;
        _mm_pause();
    }
    num_asleep_.fetch_add(1, std::memory_order_seq_cst);
    generation_.wait(seen, std::memory_order_seq_cst);
    num_asleep_.fetch_sub(1, std::memory_order_seq_cst);
}

std::mutex one_caller;
std::unique_ptr<Pool> pool;

}  // namespace

int num_threads() { return pool ? pool->num_threads() : 1; }

void run_chunks(int64_t num_chunks, void (*body)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> turn(one_caller, std::defer_lock);
    if (num_chunks > 1 && pool && !is_inside && turn.try_lock()) {
        is_inside = true;
        pool->run(num_chunks, body, context);
        is_inside = false;
        return;
    }
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) body(context, chunk);
}

}  // namespace trunkline

TRUNKLINE_EXPORT void trunkline_set_num_threads(int count) {
    std::lock_guard<std::mutex> turn(trunkline::one_caller);
    if (count == trunkline::num_threads()) return;
    trunkline::pool.reset();
    if (count > 1) trunkline::pool = std::make_unique<trunkline::Pool>(count - 1);
}
