// Memory that a thread keeps between kernels.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace trunkline {

// Grows to what was asked for at most. What it held is lost when it grows.
class Scratch {
public:
    // At least `bytes`, aligned to a cache line.
    template <class T>
    T* get(size_t bytes) {
        if (bytes > size_) {
            size_ = (bytes + 63) / 64 * 64;
            memory_.reset(std::aligned_alloc(64, size_));
            if (!memory_) throw std::bad_alloc();
        }
        return static_cast<T*>(memory_.get());
    }

private:
    struct Free {
        void operator()(void* memory) const { std::free(memory); }
    };

    std::unique_ptr<void, Free> memory_;
    size_t size_ = 0;
};

}  // namespace trunkline
