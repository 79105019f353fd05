// The experts of a sparse layer: each multiplies the rows that were routed to it.
#include <algorithm>
#include <cmath>
#include <vector>

#include "gemm.h"
#include "pool.h"
#include "scratch.h"

namespace trunkline {
namespace {

// Results that have yet to be weighted and summed. Longer batches are cut into spans of rows.
constexpr int64_t kSpanBytes = 64 << 20;
// Results that a thread sums in some 10 microseconds.
constexpr int64_t kChunkBytes = 128 << 10;

// By number, as Python names them.
const Methods* const kMethods[] = {&kFloat32Methods,  &kBFloat16Methods, &kInt8Methods,
                                   &kInt8Int8Methods, &kInt4Methods,     &kInt4Int8Methods};

// A weight as it was packed; see LinearArgs.
struct PackedLinear {
    const uint8_t* weight;
    const float* scales;
    const uint8_t* zeros;
    const float* bias;
    const int32_t* input_order;
    int64_t num_inputs;
    int64_t num_outputs;
    int64_t group_size;
    int32_t arithmetic;
    int32_t gated;
};

struct Expert {
    PackedLinear gated;
    PackedLinear down;
};

struct ExpertsArgs {
    const void* x;             // [num_rows, width]
    const int32_t* slots;      // [num_rows, top_k]: each row's experts, by slot
    const float* weights;      // [num_rows, top_k]
    const Expert* experts;     // [num_slots]: those of the slots from first_slot on
    const void* shared;        // [num_rows, width], what else is added; or null
    const float* shared_gate;  // [num_rows]: `shared` times its sigmoid
    void* out;                 // [num_rows, width]
    int64_t num_rows;
    int64_t width;
    int64_t inner;             // inputs of each expert's second product
    int64_t top_k;
    int64_t first_slot;
    int64_t num_slots;
    DType dtype;               // of x, shared and out
};

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
class Experts {
public:
    explicit Experts(const ExpertsArgs& args)
        : args_(args),
          span_(std::clamp<int64_t>(kSpanBytes / (4 * args.top_k * args.width), 1, args.num_rows)) {}

    void run() {
        const int64_t pairs = span_ * args_.top_k;
        thread_local Scratch memory;
        const int64_t parts[] = {aligned(pairs * args_.width * 4),
                                 aligned(pairs * args_.inner * int64_t{sizeof(T)}),
                                 aligned(pairs * 4), aligned(pairs * 4)};
        auto* at = memory.get<uint8_t>(
            static_cast<size_t>(parts[0] + parts[1] + parts[2] + parts[3]));
        results_ = reinterpret_cast<float*>(at);
        activated_ = reinterpret_cast<T*>(at += parts[0]);
        rows_ = reinterpret_cast<int32_t*>(at += parts[1]);
        places_ = reinterpret_cast<int32_t*>(at += parts[2]);
        for (int64_t begin = 0; begin < args_.num_rows; begin += span_) {
            const int64_t end = std::min(begin + span_, args_.num_rows);
            sort(begin, end);
            multiply(true);
            multiply(false);
            combine(begin, end);
        }
    }

private:
    // Brings the rows of each expert together; a row is there once for each of its experts here.
    void sort(int64_t begin, int64_t end) {
        starts_.assign(static_cast<size_t>(args_.num_slots) + 1, 0);
        const int64_t first = begin * args_.top_k, count = (end - begin) * args_.top_k;
        for (int64_t pair = 0; pair < count; ++pair)
            if (const int64_t slot = slot_of(first + pair); slot >= 0)
                ++starts_[static_cast<size_t>(slot) + 1];
        for (size_t slot = 1; slot < starts_.size(); ++slot) starts_[slot] += starts_[slot - 1];
        next_.assign(starts_.begin(), starts_.end());
        for (int64_t pair = 0; pair < count; ++pair) {
            const int64_t slot = slot_of(first + pair);
            places_[pair] = -1;
            if (slot < 0) continue;
            const int64_t place = next_[static_cast<size_t>(slot)]++;
            places_[pair] = static_cast<int32_t>(place);
            rows_[place] = static_cast<int32_t>(begin + pair / args_.top_k);
        }
    }

    // Among those here, or -1.
    int64_t slot_of(int64_t pair) const {
        const int64_t slot = args_.slots[pair] - args_.first_slot;
        return slot < args_.num_slots ? std::max<int64_t>(slot, -1) : -1;
    }

    // All experts' first products, or all their second ones.
    void multiply(bool gated) {
        constexpr DType kType = sizeof(T) == 4 ? DType::float32 : DType::bfloat16;
        tasks_.clear();
        for (int64_t slot = 0; slot < args_.num_slots; ++slot) {
            const int64_t begin = starts_[static_cast<size_t>(slot)];
            const int64_t count = starts_[static_cast<size_t>(slot) + 1] - begin;
            if (count == 0) continue;
            const PackedLinear& of =
                gated ? args_.experts[slot].gated : args_.experts[slot].down;
            T* activated = activated_ + begin * args_.inner;
            LinearArgs args = {};
            args.x = gated ? args_.x : activated;
            args.rows = gated ? rows_ + begin : nullptr;
            args.weight = of.weight;
            args.scales = of.scales;
            args.zeros = of.zeros;
            args.bias = of.bias;
            args.input_order = of.input_order;
            args.out = gated ? static_cast<void*>(activated) : results_ + begin * args_.width;
            args.num_rows = count;
            args.num_inputs = of.num_inputs;
            args.num_outputs = of.num_outputs;
            args.group_size = of.group_size;
            args.dtype = kType;
            args.out_dtype = gated ? kType : DType::float32;
            args.gated = of.gated;
            tasks_.push_back({args, kMethods[of.arithmetic]});
        }
        multiply_all(tasks_.data(), static_cast<int64_t>(tasks_.size()));
    }

    void combine(int64_t begin, int64_t end) const {
        const int64_t row_bytes = (args_.top_k + 1) * args_.width * 4;
        const int64_t together = std::max<int64_t>(kChunkBytes / row_bytes, 1);
        parallel_for((end - begin + together - 1) / together, [&](int64_t chunk) {
            const int64_t last = std::min(begin + (chunk + 1) * together, end);
            for (int64_t row = begin + chunk * together; row < last; ++row)
                combine_row(row, places_ + (row - begin) * args_.top_k);
        });
    }

    // Summed in the order of a row's experts, and rounded once.
    void combine_row(int64_t row, const int32_t* places) const {
        const float* weights = args_.weights + row * args_.top_k;
        const int64_t width = args_.width, whole = width - width % kWidth;
        const auto* shared = static_cast<const T*>(args_.shared);
        const float gate =
            shared == nullptr ? 0.0f : 1.0f / (1.0f + std::exp(-args_.shared_gate[row]));
        if (shared != nullptr) shared += row * width;
        T* out = static_cast<T*>(args_.out) + row * width;
        for (int64_t i = 0; i < whole; i += kWidth) {
            F32 sum = shared == nullptr ? zero() : load(shared + i) * set1(gate);
            for (int64_t each = 0; each < args_.top_k; ++each)
                if (places[each] >= 0)
                    sum = fma(load(results_ + places[each] * width + i), set1(weights[each]), sum);
            store(out + i, sum);
        }
        for (int64_t i = whole; i < width; ++i) {
            float sum = shared == nullptr ? 0.0f : to_float(shared[i]) * gate;
            for (int64_t each = 0; each < args_.top_k; ++each)
                if (places[each] >= 0)
                    sum = std::fma(results_[places[each] * width + i], weights[each], sum);
            store_float(out + i, sum);
        }
    }

    const ExpertsArgs& args_;
    const int64_t span_;  // rows at a time
    float* results_ = nullptr;   // [pairs, width]
    T* activated_ = nullptr;     // [pairs, inner]
    int32_t* rows_ = nullptr;    // [pairs]: of x, by expert
    int32_t* places_ = nullptr;  // [rows, top_k]: where among these a pair is, or -1
    std::vector<int64_t> starts_, next_;
    std::vector<Task> tasks_;
};

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(experts, trunkline::ExpertsArgs) {
    if (args->num_rows == 0) return;
    if (args->dtype == trunkline::DType::float32)
        trunkline::Experts<float>(*args).run();
    else
        trunkline::Experts<trunkline::BFloat16>(*args).run();
}
