// Attention over the paged cache, for any mix of sequences with one query and with many.
#include "attention.h"

#include <vector>

#include "attention_decode.h"
#include "attention_extend.h"
#include "pool.h"

namespace trunkline {
namespace {

constexpr int64_t kPartialBytes = 64 << 20;  // of all parts that are done at a time

// What one thread does without another: a tile of queries of one kv head, or a part of the positions
// that a single query sees.
struct Item {
    int32_t sequence;
    int32_t kv_head;  // -1 for a part
    int32_t first;
    int32_t last;
    int32_t row = 0;  // of a part's query
};

// A query that is done in parts: its row, and the items that are its parts.
struct Single {
    int32_t row;
    int32_t first_item;
    int32_t num_items;
};

// A step's items in the order in which threads take them, and where its chunks begin.
struct Work {
    std::vector<Item> items;
    std::vector<int32_t> chunks;
    std::vector<Single> singles;

    // Queries in rows `first` up to `last`, of those that are done in parts; the others with the first.
    void plan(const AttendArgs& args, int64_t first, int64_t last) {
        items.clear(), chunks.clear(), singles.clear();
        if (first == 0) plan_tiles(args);
        plan_parts(args, first, last);
        chunks.push_back(static_cast<int32_t>(items.size()));
    }

private:
    // Latest queries first: they see most, and what is long should not come last.
    void plan_tiles(const AttendArgs& args) {
        const int32_t step = static_cast<int32_t>(queries_per_tile(args.num_heads / args.num_kv_heads));
        for (int32_t sequence = 0; sequence < args.batch->num_sequences; ++sequence) {
            const int32_t* starts = args.batch->query_starts + sequence;
            const int32_t size = starts[1] - starts[0];
            if (size == 1 || args.row_by_row) continue;
            for (int32_t first = (size - 1) / step * step; first >= 0; first -= step)
                for (int32_t kv_head = 0; kv_head < args.num_kv_heads; ++kv_head) {
                    chunks.push_back(static_cast<int32_t>(items.size()));
                    items.push_back({sequence, kv_head, first, std::min(first + step, size)});
                }
        }
    }

    void plan_parts(const AttendArgs& args, int64_t first, int64_t last) {
        int64_t in_chunk = kSplit;
        for (int32_t sequence = 0; sequence < args.batch->num_sequences; ++sequence) {
            const int32_t* starts = args.batch->query_starts + sequence;
            if (starts[1] - starts[0] > 1 && !args.row_by_row) continue;
            const int64_t past = args.batch->context_lens[sequence] - starts[1];  // before row 0
            const int32_t begin = std::max(starts[0], static_cast<int32_t>(first));
            const int32_t end = std::min(starts[1], static_cast<int32_t>(last));
            for (int32_t row = begin; row < end; ++row)
                plan_single(args, sequence, row, past + row + 1, in_chunk);
        }
    }

    // The query in `row`, which sees positions before `end`. in_chunk: slots of the last chunk.
    void plan_single(
        const AttendArgs& args, int32_t sequence, int32_t row, int64_t end, int64_t& in_chunk) {
        const int32_t first_item = static_cast<int32_t>(items.size());
        const int64_t slots_end = slots_before(args, sequence, end);
        for (int64_t first = slots_before(args, sequence, end - args.window); first < slots_end;) {
            const int64_t last = std::min(slots_end, (first / kSplit + 1) * kSplit);
            if (in_chunk + last - first > kSplit) {
                chunks.push_back(static_cast<int32_t>(items.size()));
                in_chunk = 0;
            }
            in_chunk += last - first;
            items.push_back(
                {sequence, -1, static_cast<int32_t>(first), static_cast<int32_t>(last), row});
            first = last;
        }
        const int32_t num_items = static_cast<int32_t>(items.size()) - first_item;
        singles.push_back({row, first_item, num_items});
    }
};

// The sum of a sequence's parts as the row of its query, in the order of positions.
template <class T, class Cache>
void merge(const AttendArgs& args, float* partials, int64_t num_parts, int64_t row) {
    const int64_t width = round_up(args.head_dim, kPair);
    const auto part = [&](int64_t index) {
        return Partial(
            partials + index * Partial::floats(args.num_heads, width), args.num_heads, width);
    };
    T* out = static_cast<T*>(args.out);
    for (int64_t head = 0; head < args.num_heads; ++head) {
        if (num_parts == 0) {
            store_partial(args, row, head, nullptr, 0.0f, 0.0f);
            continue;
        }
        float* sums = part(0).sums + head * width;
        float total = part(0).total[head], peak = part(0).peak[head];
        for (int64_t i = 1; i < num_parts; ++i) {
            const float next_peak = std::max(peak, part(i).peak[head]);
            const float keep = std::exp(peak - next_peak);
            const float take = std::exp(part(i).peak[head] - next_peak);
            const float* from = part(i).sums + head * width;
            for (int64_t d = 0; d < width; d += kWidth)
                store(sums + d, fma(load(from + d), set1(take), load(sums + d) * set1(keep)));
            total = total * keep + part(i).total[head] * take;
            peak = next_peak;
        }
        if (args.partial) {
            DecodePart<T, Cache>::restore_order(sums, args.head_dim);
            store_partial(args, row, head, sums, total, peak);
        } else {
            DecodePart<T, Cache>::store_head(
                sums, 1.0f / total, args.head_dim,
                out + (row * args.num_heads + head) * args.head_dim);
        }
    }
}

// Queries that are done together, so that what their parts leave behind stays within bounds.
int64_t rows_at_once(const AttendArgs& args) {
    const int32_t* lengths = args.batch->context_lens;
    const int64_t longest = *std::max_element(lengths, lengths + args.batch->num_sequences);
    const int64_t seen = std::min(longest, args.window);
    const int64_t part_bytes =
        Partial::floats(args.num_heads, round_up(args.head_dim, kPair)) * sizeof(float);
    return std::max<int64_t>(1, kPartialBytes / (part_bytes * (seen / kSplit + 2)));
}

template <class T, class Cache>
void attend_rows(const AttendArgs& args, int64_t first, int64_t last) {
    static thread_local Work planned;
    static thread_local Scratch scratch;
    Work& work = planned;
    work.plan(args, first, last);
    const int64_t stride = Partial::floats(args.num_heads, round_up(args.head_dim, kPair));
    float* partials = scratch.get<float>(work.items.size() * stride * sizeof(float));

    parallel_for(static_cast<int64_t>(work.chunks.size()) - 1, [&](int64_t chunk) {
        for (int32_t index = work.chunks[chunk]; index < work.chunks[chunk + 1]; ++index) {
            const Item& item = work.items[index];
            if (item.kv_head >= 0) {
                ExtendTile<T, Cache>(args, item.sequence, item.kv_head, item.first, item.last).run();
                continue;
            }
            DecodePart<T, Cache>(args, item.sequence, item.first, item.last)
                .run(item.row,
                     Partial(partials + index * stride, args.num_heads, round_up(args.head_dim, kPair)));
        }
    });
    parallel_for(static_cast<int64_t>(work.singles.size()), [&](int64_t index) {
        const Single& single = work.singles[index];
        merge<T, Cache>(args, partials + single.first_item * stride, single.num_items, single.row);
    });
}

template <class T, class Cache>
void attend(const AttendArgs& args) {
    const int64_t num_rows = args.batch->num_rows, step = num_rows > 0 ? rows_at_once(args) : 1;
    for (int64_t first = 0; first < num_rows; first += step)
        attend_rows<T, Cache>(args, first, std::min(first + step, num_rows));
    const int64_t padding = args.num_rows - num_rows;
    if (args.partial) {
        const int64_t width = args.num_heads * (args.head_dim + 1);
        std::memset(args.partial + num_rows * width, 0, padding * width * sizeof(float));
    } else {
        const int64_t width = args.num_heads * args.head_dim;
        std::memset(static_cast<T*>(args.out) + num_rows * width, 0, padding * width * sizeof(T));
    }
}

}  // namespace
}  // namespace trunkline

TRUNKLINE_KERNEL(attend, trunkline::AttendArgs) {
    using trunkline::attend, trunkline::BFloat16, trunkline::DType;
    const bool is_int8 = args->cache_dtype == DType::int8;
    if (args->dtype == DType::float32)
        (is_int8 ? attend<float, int8_t> : attend<float, float>)(*args);
    else
        (is_int8 ? attend<BFloat16, int8_t> : attend<BFloat16, BFloat16>)(*args);
}
