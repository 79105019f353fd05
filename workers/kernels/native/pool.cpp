#include "pool.h"

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include <dlfcn.h>
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
        while (num_inside_.load(std::memory_order_seq_cst) != 0) _mm_pause();
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
        // In this order: whoever stops the pool counts the generation up after saying so.
        seen = generation_.load(std::memory_order_seq_cst);
        if (stops_.load()) return;
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

// The OpenMP threads that torch computes with, if it is loaded and they are GNU's.
class Team {
public:
    Team() : parallel_(reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))) {}

    bool is_there() const { return parallel_ != nullptr; }

    void run(int count, int64_t num_chunks, void (*body)(void*, int64_t), void* context) const {
        Job job{body, context, num_chunks, {0}};
        parallel_(&take_chunks, &job, count, 0);
    }

private:
    using Parallel = void (*)(void (*)(void*), void*, unsigned num_threads, unsigned flags);

    struct Job {
        void (*body)(void*, int64_t);
        void* context;
        int64_t num_chunks;
        std::atomic<int64_t> next;
    };

    static void take_chunks(void* context) {
        Job& job = *static_cast<Job*>(context);
        is_inside = true;
        for (int64_t chunk; (chunk = job.next.fetch_add(1)) < job.num_chunks;)
            job.body(job.context, chunk);
        is_inside = false;
    }

    Parallel parallel_;
};

// What follows is for whoever holds `one_caller`. The pool outlives the process's static objects: a
// thread may still compute while these go.
std::mutex one_caller;
Pool* pool = nullptr;
const Team team;
int team_size = 0;  // while the team is used instead of the pool

int threads_now() {
    if (team_size > 0) return team_size;
    return pool != nullptr ? pool->num_threads() : 1;
}

}  // namespace

void run_chunks(int64_t num_chunks, void (*body)(void*, int64_t), void* context) {
    std::unique_lock<std::mutex> turn(one_caller, std::defer_lock);
    if (num_chunks > 1 && !is_inside && turn.try_lock() && threads_now() > 1) {
        is_inside = true;
        if (team_size > 0)
            team.run(team_size, num_chunks, body, context);
        else
            pool->run(num_chunks, body, context);
        is_inside = false;
        return;
    }
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) body(context, chunk);
}

}  // namespace trunkline

// Computes on `count` threads: our own, or torch's OpenMP threads if it `shares` them and they can
// be found.
TRUNKLINE_EXPORT void trunkline_set_threads(int count, int shares) {
    using namespace trunkline;
    std::lock_guard<std::mutex> turn(one_caller);
    const bool uses_team = shares && team.is_there();
    if (count == threads_now() && uses_team == (team_size > 0)) return;
    delete pool;
    pool = !uses_team && count > 1 ? new Pool(count - 1) : nullptr;
    team_size = uses_team ? count : 0;
}
