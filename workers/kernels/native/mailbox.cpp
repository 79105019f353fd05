// A one-way pipe between two processes that share a segment of memory.
//
// Slots are filled and emptied in turn, so the sender runs ahead by as many. Messages larger than a
// slot take several.
#include <algorithm>
#include <cstring>

#include "kernel.h"
#include "shared_wait.h"

namespace trunkline {
namespace {

constexpr uint32_t kSender = 0, kReceiver = 1;

struct MailboxArgs {
    void* segment;
    int64_t capacity;  // bytes of a slot, a multiple of 64
    int64_t limit_ns;
    uint32_t num_slots;  // a power of two, as counts wrap
    void* message;
    int64_t num_bytes;
};

struct Mailbox {
    SegmentHeader header;
    alignas(64) Counter sent;
    alignas(64) Counter received;
    alignas(64) char slots[];
};

struct alignas(64) Slot {
    int64_t message_bytes;
    alignas(64) char piece[];
};

Slot& slot(const MailboxArgs& args, uint32_t number) {
    const int64_t size = sizeof(Slot) + args.capacity;
    char* slots = static_cast<Mailbox*>(args.segment)->slots;
    return *reinterpret_cast<Slot*>(slots + (number & (args.num_slots - 1)) * size);
}

void send(const MailboxArgs& args) {
    Mailbox& box = *static_cast<Mailbox*>(args.segment);
    uint32_t number = box.sent.value.load(std::memory_order_relaxed);
    int64_t done = 0;
    do {
        if (box.header.has_failed()) return;
        const uint32_t emptied = number - args.num_slots + 1;
        if (!wait_for(box.header, box.received, emptied, args.limit_ns, kReceiver)) return;
        Slot& next = slot(args, number);
        next.message_bytes = args.num_bytes;
        const int64_t num_bytes = std::min(args.capacity, args.num_bytes - done);
        std::memcpy(next.piece, static_cast<const char*>(args.message) + done, num_bytes);
        box.sent.publish(++number);
        done += num_bytes;
    } while (done < args.num_bytes);
}

void receive(const MailboxArgs& args) {
    Mailbox& box = *static_cast<Mailbox*>(args.segment);
    uint32_t number = box.received.value.load(std::memory_order_relaxed);
    int64_t done = 0;
    do {
        if (box.header.has_failed()) return;
        if (!wait_for(box.header, box.sent, number + 1, args.limit_ns, kSender)) return;
        const Slot& next = slot(args, number);
        if (next.message_bytes != args.num_bytes) {
            box.header.fail(Failure::disagreed, kSender);
            return;
        }
        const int64_t num_bytes = std::min(args.capacity, args.num_bytes - done);
        std::memcpy(static_cast<char*>(args.message) + done, next.piece, num_bytes);
        box.received.publish(++number);
        done += num_bytes;
    } while (done < args.num_bytes);
}

}  // namespace
}  // namespace trunkline

// Bytes of a mailbox's segment, which starts as zeros.
TRUNKLINE_EXPORT int64_t trunkline_mailbox_bytes(int32_t num_slots, int64_t capacity) {
    using namespace trunkline;
    return sizeof(Mailbox) + num_slots * (static_cast<int64_t>(sizeof(Slot)) + capacity);
}

TRUNKLINE_KERNEL(send, trunkline::MailboxArgs) { trunkline::send(*args); }

TRUNKLINE_KERNEL(receive, trunkline::MailboxArgs) { trunkline::receive(*args); }
