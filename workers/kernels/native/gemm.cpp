#include "gemm.h"

#include <algorithm>
#include <vector>

#include "gemm_activations.h"
#include "gemm_tile.h"
#include "pool.h"
#include "scratch.h"

namespace trunkline {
namespace {

// A chunk of a single block of rows reads so much, some microseconds' work. With more rows, it has
// so many multiplications, 10 to 200 microseconds: small products must have chunks for all threads.
constexpr int64_t kChunkBytes = 48 << 10;
constexpr int64_t kMinChunkProducts = 512 << 10, kMaxChunkProducts = 8 << 20;
constexpr int64_t kChunksAtLeast = 128;
// Activations of a chunk, which stay in the second cache while its panels pass.
constexpr int64_t kChunkActivationBytes = 256 << 10;
constexpr int64_t kMinChunkBlocks = 4, kMaxChunkBlocks = 16;
// Weights that stay in the first cache while all blocks of rows pass.
constexpr int64_t kCachedBytes = 16 << 10;

// How far ahead of a single block of rows weights are fetched: a stream of its own gets some 15 %
// more of the bandwidth than where only the processor looks ahead.
constexpr int64_t kAheadBytes = 2 << 10;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
    int64_t begin;
    int64_t end;
    int64_t size() const { return end - begin; }
};

class Product {
public:
    Product(const LinearArgs& args, const Method& method)
        : args_(args),
          method_(method),
          layout_(args, method),
          blocks_(layout_.blocks()),
          num_steps_(ceil_div(args.num_inputs, inputs_per_step(method.weights))),
          group_steps_(method.weights == WeightFormat::int4
                           ? args.group_size / inputs_per_step(WeightFormat::int4)
                           : 1),
          panel_bytes_(num_steps_ * kStepBytes),
          half_(args.gated ? args.num_outputs / 2 : args.num_outputs),
          num_panels_(ceil_div(half_, kPanel) * (args.gated ? 2 : 1)),
          width_(std::min<int64_t>(panels_for(blocks_.rows(blocks_.count - 1)), num_panels_)),
          row_groups_(ceil_div(blocks_.count, blocks_of_chunk())),
          chunk_panels_(panels_of_chunk()) {}

    const ActivationLayout& layout() const { return layout_; }

    // `memory` is for x as it is laid out.
    void place(uint8_t* memory) {
        layout_.place(memory);
        x_ = layout_.activations();
    }

    int64_t num_chunks() const { return row_groups_ * ceil_div(num_panels_, chunk_panels_); }

    // Once x is laid out.
    void run(int64_t chunk) const {
        const int64_t group = chunk % row_groups_, first = chunk / row_groups_ * chunk_panels_;
        const Range blocks{blocks_.count * group / row_groups_,
                           blocks_.count * (group + 1) / row_groups_};
        run_chunk(blocks, {first, std::min(first + chunk_panels_, num_panels_)});
    }

private:
    int64_t blocks_of_chunk() const {
        const int64_t of_block = num_steps_ * method_.words_per_step * 4 * kMaxRows;
        return std::clamp(kChunkActivationBytes / of_block, kMinChunkBlocks, kMaxChunkBlocks);
    }

    int64_t panels_of_chunk() const {
        const int64_t rows = ceil_div(args_.num_rows, row_groups_);
        const int64_t of_panel = rows * kPanel * args_.num_inputs;
        const int64_t products =
            std::clamp(row_groups_ * num_panels_ * of_panel / kChunksAtLeast, kMinChunkProducts,
                       kMaxChunkProducts);
        const int64_t wanted =
            blocks_.count == 1 ? kChunkBytes / panel_bytes_ : products / of_panel;
        // Pairs of a gated product stay together.
        const int64_t unit = args_.gated && width_ % 2 ? 2 * width_ : width_;
        return ceil_div(std::max<int64_t>(wanted, 1), unit) * unit;
    }

    // Steps of the weights after which the next block of rows takes its turn.
    int64_t cached_steps() const {
        if (blocks_.count == 1 && method_.expand == nullptr) return num_steps_;
        const int64_t steps = kCachedBytes / (width_ * method_.expansion * kStepBytes);
        return std::max<int64_t>(steps / group_steps_, 1) * group_steps_;
    }

    // Where int4's tables of a panel begin, from a step on.
    int64_t table_of(int64_t panel, int64_t step) const {
        return (panel * (num_steps_ / group_steps_) + step / group_steps_) * kPanel;
    }

    void run_chunk(Range blocks, Range panels) const {
        thread_local Scratch memory;
        const Range rows{blocks_.begin(blocks.begin), blocks_.begin(blocks.end)};
        auto* sums =
            memory.get<float>(static_cast<size_t>(rows.size() * panels.size() * kPanel * 4));
        const int64_t at_once = cached_steps();
        for (int64_t panel = panels.begin, width; panel < panels.end; panel += width) {
            width = panels.end - panel >= width_ ? width_ : 1;
            for (int64_t step = 0; step < num_steps_; step += at_once) {
                const Range steps{step, std::min(step + at_once, num_steps_)};
                const bool is_last = steps.end == num_steps_;
                const uint8_t* next =
                    is_last ? steps_at(panel + width, 0) : steps_at(panel, steps.end);
                add_panels(blocks, {panel, panel + width}, steps, next,
                           sums + (panel - panels.begin) * rows.size() * kPanel);
            }
        }
        finish(rows, panels, sums);
    }

    const uint8_t* steps_at(int64_t panel, int64_t step) const {
        return args_.weight + panel * panel_bytes_ + step * kStepBytes;
    }

    // Adds some steps of panels side by side to their sums, [panels][rows][16]. Meanwhile the
    // blocks of rows fetch what is at `next`, each a part of it.
    void add_panels(Range blocks, Range panels, Range steps, const uint8_t* next,
                    float* sums) const {
        const uint8_t* from = steps_at(panels.begin, steps.begin);
        TileArgs tile = {};
        tile.adds = steps.begin > 0;
        tile.weight = from;
        tile.panel_bytes = panel_bytes_;
        tile.num_steps = steps.size();
        if (method_.expand != nullptr) {
            tile.weight = expand(panels, steps);
            tile.num_steps = steps.size() * method_.expansion;
            tile.panel_bytes = tile.num_steps * kStepBytes;
        }
        const int64_t share = steps.size() * kStepBytes / ceil_div(blocks.size(), panels.size());
        for (int64_t block = blocks.begin; block < blocks.end; ++block) {
            const int64_t turn = block - blocks.begin;
            tile.ahead = next + turn % panels.size() * panel_bytes_ + turn / panels.size() * share;
            tile.ahead_step = share / tile.num_steps;
            if (blocks_.count == 1) {
                tile.ahead = from + kAheadBytes;
                tile.ahead_step = kStepBytes;
            }
            run_block(blocks, block, panels, steps.begin, tile, sums);
        }
    }

    const uint8_t* expand(Range panels, Range steps) const {
        thread_local Scratch memory;
        const int64_t bytes = steps.size() * method_.expansion * kStepBytes;
        auto* expanded = memory.get<uint8_t>(static_cast<size_t>(panels.size() * bytes));
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const int64_t at = table_of(panel, steps.begin);
            method_.expand({steps_at(panel, steps.begin), steps.size(),
                            expanded + (panel - panels.begin) * bytes, args_.scales + at,
                            args_.zeros == nullptr ? nullptr : args_.zeros + at, group_steps_});
        }
        return expanded;
    }

    void run_block(Range blocks, int64_t block, Range panels, int64_t step, TileArgs tile,
                   float* sums) const {
        const int64_t begin = blocks_.begin(block), first = blocks_.begin(blocks.begin);
        const int rows = blocks_.rows(block);
        tile.x = x_.words + begin * x_.words_per_row + step * method_.words_per_step * rows;
        tile.sums = sums + (begin - first) * kPanel;
        tile.sums_panel = (blocks_.begin(blocks.end) - first) * kPanel;
        if (x_.groups != 0) {
            const int64_t at = table_of(panels.begin, step);
            tile.group_steps = group_steps_;
            tile.panel_groups = x_.groups;
            tile.scales = args_.scales + at;
            tile.zeros = args_.zeros == nullptr ? nullptr : args_.zeros + at;
            tile.x_sums = x_.sums + begin * x_.groups + step / group_steps_ * rows;
        }
        const Tile* of = method_.tiles->of[rows - 1];
        if (panels.size() == panels_for(rows)) return of[1](tile);
        for (int64_t each = 0; each < panels.size(); ++each) {
            of[0](tile);
            tile.weight += tile.panel_bytes;
            tile.sums = static_cast<float*>(tile.sums) + tile.sums_panel;
            if (tile.scales != nullptr) tile.scales += x_.groups * kPanel;
            if (tile.zeros != nullptr) tile.zeros += x_.groups * kPanel;
        }
    }

    // From sums [panels][rows][16] to outputs.
    void finish(Range rows, Range panels, const float* sums) const {
        for (int64_t row = rows.begin; row < rows.end; ++row)
            for (int64_t panel = panels.begin; panel < panels.end; panel += args_.gated ? 2 : 1) {
                const float* from =
                    sums + ((panel - panels.begin) * rows.size() + row - rows.begin) * kPanel;
                float values[kPanel];
                for (int part = 0; part < kPanel; part += kWidth) {
                    F32 value = output(from + part, row, panel * kPanel + part);
                    if (args_.gated) {
                        const float* gated = from + rows.size() * kPanel;
                        value = silu(value) *
                                output(gated + part, row, (panel + 1) * kPanel + part);
                    }
                    store(values + part, value);
                }
                if (args_.out_dtype == DType::float32)
                    write(values, row, panel, static_cast<float*>(args_.out));
                else
                    write(values, row, panel, static_cast<BFloat16*>(args_.out));
            }
    }

    F32 output(const float* sum, int64_t row, int64_t column) const {
        F32 value = load(sum);
        if (x_.groups != 0) {
            value = value * set1(x_.scales[row].scale);
        } else if (method_.quantizes_x) {
            const auto [scale, offset] = x_.scales[row];
            const Int exact = sub_int(load_int(sum), broadcast(static_cast<uint32_t>(offset)));
            value = to_float(exact) * (load(args_.scales + column) * set1(scale));
        } else if (method_.weights == WeightFormat::int8) {
            value = value * (load(args_.scales + column) * set1(1.0f / kInt8Unit));
        }
        return args_.bias == nullptr ? value : value + load(args_.bias + column);
    }

    static F32 silu(F32 x) { return div(x, set1(1.0f) + exp(min(zero() - x, set1(88.0f)))); }

    template <class T>
    void write(const float* values, int64_t row, int64_t panel, T* out) const {
        const int64_t column = (args_.gated ? panel / 2 : panel) * kPanel;
        T* to = out + row * half_ + column;
        if (column + kPanel <= half_) {
            for (int part = 0; part < kPanel; part += kWidth) store(to + part, load(values + part));
        } else {
            for (int64_t i = 0; i < half_ - column; ++i) store_float(to + i, values[i]);
        }
    }

    const LinearArgs& args_;
    const Method& method_;
    ActivationLayout layout_;
    Activations x_ = {};
    const RowBlocks blocks_;
    const int64_t num_steps_;
    const int64_t group_steps_;
    const int64_t panel_bytes_;
    const int64_t half_;  // outputs that are stored
    const int64_t num_panels_;
    const int64_t width_;
    const int64_t row_groups_;
    const int64_t chunk_panels_;
};

// Runs chunks of all products in one go: count(product) of each, by run(product, chunk).
template <class Count, class Run>
void run_chunks_of(std::vector<Product>& products, Count&& count, Run&& run) {
    if (products.size() == 1) {
        parallel_for(count(products[0]), [&](int64_t chunk) { run(products[0], chunk); });
        return;
    }
    thread_local std::vector<int64_t> starts_of_thread;
    std::vector<int64_t>& starts = starts_of_thread;
    starts.assign(1, 0);
    for (const Product& product : products) starts.push_back(starts.back() + count(product));
    parallel_for(starts.back(), [&](int64_t chunk) {
        const auto next = std::upper_bound(starts.begin(), starts.end(), chunk);
        const auto index = static_cast<size_t>(next - starts.begin() - 1);
        run(products[index], chunk - starts[index]);
    });
}

}  // namespace

void multiply_all(const Task* tasks, int64_t count) {
    thread_local std::vector<Product> products;
    thread_local Scratch memory;
    products.clear();
    products.reserve(static_cast<size_t>(count));
    int64_t bytes = 0;
    for (int64_t each = 0; each < count; ++each) {
        const LinearArgs& args = tasks[each].args;
        const Methods& methods = *tasks[each].methods;
        if (args.num_rows == 0) continue;
        products.emplace_back(args, args.num_rows <= 2 * kMaxRows ? methods.few : methods.many);
        bytes += products.back().layout().bytes();
    }
    if (products.empty()) return;
    auto* free = memory.get<uint8_t>(static_cast<size_t>(bytes));
    for (Product& product : products) {
        product.place(free);
        free += product.layout().bytes();
    }
    run_chunks_of(
        products, [](const Product& product) { return product.layout().num_chunks(); },
        [](const Product& product, int64_t chunk) { product.layout().fill(chunk); });
    run_chunks_of(
        products, [](const Product& product) { return product.num_chunks(); },
        [](const Product& product, int64_t chunk) { product.run(chunk); });
}

void multiply(const LinearArgs& args, const Methods& methods) {
    const Task task{args, &methods};
    multiply_all(&task, 1);
}

}  // namespace trunkline
