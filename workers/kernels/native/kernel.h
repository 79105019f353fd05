// How a kernel is exported.
//
// Each takes one pointer to a plain struct of arguments, mirrored by a ctypes.Structure in Python.
// So any call can be kept and played again without Python (see program.cpp).
#pragma once

#include <cstdint>

#define TRUNKLINE_EXPORT extern "C" __attribute__((visibility("default")))

// Exports `name(const Args*)`, and the size of Args, which Python compares with its own.
#define TRUNKLINE_KERNEL(name, Args)                                 \
    TRUNKLINE_EXPORT int64_t trunkline_##name##_size() { return sizeof(Args); } \
    TRUNKLINE_EXPORT void trunkline_##name(const Args* args)

namespace trunkline {

// Types of elements, as Python names them.
enum class DType : int32_t { float32 = 0, bfloat16 = 1, int8 = 2 };

}  // namespace trunkline
