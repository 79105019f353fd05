// Collectives between processes that share a segment of memory.
//
// Each rank has two buffers and a counter. In a round, a rank writes into one of its buffers, counts
// up, waits until all others have counted as far, and reads their buffers. Buffers take turns: who
// has seen everyone in this round knows that everyone is done reading the last one's. So a round has
// one wait, and what a rank does between rounds is up to it. Messages larger than a buffer take
// several rounds.
#include <algorithm>

#include "kernel.h"
#include "pool.h"
#include "shared_wait.h"
#include "vec.h"

namespace trunkline {
namespace {

constexpr int64_t kPair = 2 * kWidth;

// Bytes that a thread works through in some 10 microseconds; see fused.cpp.
constexpr int64_t kChunkBytes = 128 * 1024;

// Ranks of a group, which Python checks.
constexpr int kMaxRanks = 64;

enum class Collective : int64_t { all_reduce = 1, all_gather = 2, all_to_all = 3 };

// One rank's seat in its group's segment.
struct Seat {
    void* segment;
    int64_t capacity;  // bytes of a buffer, a multiple of 64
    int64_t limit_ns;
    int32_t rank;
    int32_t size;
};

struct alignas(64) Member {
    Counter arrived;
    int64_t calls[2];  // what it takes part in, by buffer
};

class Party {
public:
    // `call` is the same number on all ranks that take part in the same.
    Party(const Seat& seat, Collective kind, int64_t call)
        : seat_(seat),
          header_(*static_cast<SegmentHeader*>(seat.segment)),
          members_(reinterpret_cast<Member*>(&header_ + 1)),
          buffers_(reinterpret_cast<char*>(members_ + seat.size)),
          call_(call * 4 + static_cast<int64_t>(kind)),
          round_(members_[seat.rank].arrived.value.load(std::memory_order_relaxed) + 1) {}

    int rank() const { return seat_.rank; }
    int size() const { return seat_.size; }
    int64_t capacity() const { return seat_.capacity; }

    char* buffer(int rank) const { return buffers_ + (2 * rank + (round_ & 1)) * seat_.capacity; }
    char* own() const { return buffer(seat_.rank); }

    // Shows the others this rank's buffer, and waits for theirs. False if that has failed.
    bool meet() {
        if (header_.has_failed()) return false;
        Member& self = members_[seat_.rank];
        self.calls[round_ & 1] = call_;
        self.arrived.publish(round_);
        for (int rank = 0; rank < seat_.size; ++rank) {
            if (!wait_for(header_, members_[rank].arrived, round_, seat_.limit_ns, rank)) return false;
            if (members_[rank].calls[round_ & 1] != call_) return disagree(rank);
        }
        return true;
    }

    void next_round() { ++round_; }

    bool disagree(int rank) {
        header_.fail(Failure::disagreed, rank);
        return false;
    }

private:
    const Seat& seat_;
    SegmentHeader& header_;
    Member* members_;
    char* buffers_;
    int64_t call_;
    uint32_t round_;
};

void copy(void* to, const void* from, int64_t num_bytes) {
    const int64_t num_chunks = std::max<int64_t>(num_bytes / kChunkBytes, 1);
    parallel_for(num_chunks, [=](int64_t chunk) {
        const int64_t begin = num_bytes * chunk / num_chunks, end = num_bytes * (chunk + 1) / num_chunks;
        std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, end - begin);
    });
}

struct AllReduceArgs {
    Seat seat;
    void* x;
    int64_t count;
    DType dtype;
};

// In float32, in the order of ranks, rounded once: the same bits wherever it is computed.
template <class T>
void sum_parts(const T* const* parts, int num_parts, T* out, int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kPair <= end; i += kPair) {
        Pair sum = load_pair(parts[0] + i);
        for (int part = 1; part < num_parts; ++part) sum = sum + load_pair(parts[part] + i);
        store_pair(out + i, sum);
    }
    for (; i < end; ++i) {
        float sum = to_float(parts[0][i]);
        for (int part = 1; part < num_parts; ++part) sum += to_float(parts[part][i]);
        store_float(out + i, sum);
    }
}

template <class T>
void sum_buffers(const Party& party, T* x, int64_t count) {
    const T* parts[kMaxRanks];
    for (int rank = 0; rank < party.size(); ++rank)
        parts[rank] = rank == party.rank() ? x : reinterpret_cast<const T*>(party.buffer(rank));
    constexpr int64_t kChunk = kChunkBytes / sizeof(T);
    const int64_t num_chunks = std::max<int64_t>(count / kChunk, 1);
    parallel_for(num_chunks, [&](int64_t chunk) {
        const int64_t end = chunk + 1 == num_chunks ? count : (chunk + 1) * kChunk;
        sum_parts(parts, party.size(), x, chunk * kChunk, end);
    });
}

template <class T>
void all_reduce(const AllReduceArgs& args) {
    Party party(args.seat, Collective::all_reduce, args.count * 4 + static_cast<int64_t>(args.dtype));
    const int64_t most = party.capacity() / static_cast<int64_t>(sizeof(T));
    T* x = static_cast<T*>(args.x);
    for (int64_t done = 0; done < args.count; done += most, party.next_round()) {
        const int64_t count = std::min(most, args.count - done);
        copy(party.own(), x + done, count * sizeof(T));
        if (!party.meet()) return;
        sum_buffers(party, x + done, count);
    }
}

struct AllGatherArgs {
    Seat seat;
    const void* x;
    void* out;
    int64_t num_bytes;  // of x
};

void all_gather(const AllGatherArgs& args) {
    Party party(args.seat, Collective::all_gather, args.num_bytes);
    const char* x = static_cast<const char*>(args.x);
    char* out = static_cast<char*>(args.out);
    for (int64_t done = 0; done < args.num_bytes; done += party.capacity(), party.next_round()) {
        const int64_t num_bytes = std::min(party.capacity(), args.num_bytes - done);
        copy(party.own(), x + done, num_bytes);
        if (!party.meet()) return;
        for (int rank = 0; rank < party.size(); ++rank)
            copy(out + rank * args.num_bytes + done, party.buffer(rank), num_bytes);
    }
}

struct AllToAllArgs {
    Seat seat;
    const void* x;
    void* out;
    const int64_t* counts;      // rows of x for each rank
    const int64_t* out_counts;  // rows of out from each rank
    int64_t row_bytes;
};

// What a buffer holds: where in the sender's message each receiver's part ends, and a piece of it.
struct Letter {
    int64_t ends[kMaxRanks];
    char piece[];
};

// Copies what the piece [done, done + num_bytes) of a message holds of the part [begin, end).
void take_part(const Letter& letter, int64_t done, int64_t num_bytes, int64_t begin, int64_t end, char* out) {
    const int64_t from = std::max(begin, done), to = std::min(end, done + num_bytes);
    if (from < to) copy(out + from - begin, letter.piece + from - done, to - from);
}

void all_to_all(const AllToAllArgs& args) {
    Party party(args.seat, Collective::all_to_all, args.row_bytes);
    const int64_t most = party.capacity() - static_cast<int64_t>(sizeof(Letter));
    int64_t ends[kMaxRanks], total = 0;
    for (int rank = 0; rank < party.size(); ++rank)
        ends[rank] = total += args.counts[rank] * args.row_bytes;
    int64_t longest = total;  // of all ranks' messages, once the others' are seen
    int64_t done = 0;
    do {
        Letter& own = *reinterpret_cast<Letter*>(party.own());
        std::copy_n(ends, party.size(), own.ends);
        if (done < total)
            copy(own.piece, static_cast<const char*>(args.x) + done, std::min(most, total - done));
        if (!party.meet()) return;
        char* out = static_cast<char*>(args.out);
        for (int rank = 0; rank < party.size(); ++rank) {
            const Letter& letter = *reinterpret_cast<const Letter*>(party.buffer(rank));
            const int64_t begin = party.rank() > 0 ? letter.ends[party.rank() - 1] : 0;
            const int64_t end = letter.ends[party.rank()];
            if (end - begin != args.out_counts[rank] * args.row_bytes) {
                party.disagree(rank);
                return;
            }
            take_part(letter, done, most, begin, end, out);
            out += end - begin;
            longest = std::max(longest, letter.ends[party.size() - 1]);
        }
        done += most;
        party.next_round();
    } while (done < longest);
}

}  // namespace
}  // namespace trunkline

// Bytes of a group's segment, which starts as zeros.
TRUNKLINE_EXPORT int64_t trunkline_group_bytes(int32_t size, int64_t capacity) {
    using namespace trunkline;
    return sizeof(SegmentHeader) + size * (static_cast<int64_t>(sizeof(Member)) + 2 * capacity);
}

TRUNKLINE_KERNEL(all_reduce, trunkline::AllReduceArgs) {
    if (args->dtype == trunkline::DType::float32)
        trunkline::all_reduce<float>(*args);
    else
        trunkline::all_reduce<trunkline::BFloat16>(*args);
}

TRUNKLINE_KERNEL(all_gather, trunkline::AllGatherArgs) { trunkline::all_gather(*args); }

TRUNKLINE_KERNEL(all_to_all, trunkline::AllToAllArgs) { trunkline::all_to_all(*args); }
