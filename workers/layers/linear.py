"""Matrix products with fixed weights."""

from typing import Protocol

import torch
import torch.nn.functional as F

from workers.kernels.cpu_fused import CpuRowKernels
from workers.kernels.cpu_gemm import GROUP_MULTIPLE, CpuGemm, PackedSpec, PackedWeight, cpu_gemm
from workers.kernels.instruction_set import cpu_flags
from workers.kernels.library import load_library
from workers.kernels.silu_mul import silu_mul
from workers.layers.placed import placed
from workers.layers.quantized_linear import ReferenceQuantizedLinear
from workers.quantization.quantized_weight import QuantizedWeight

_ROWS_HINT = 64
"""Rows that oneDNN lays a weight out for. Between 1 and 256, this hint was the fastest or within
noise of it for batches of 1 to 2048 rows, in bfloat16 and float32."""


class Linear(Protocol):
    """A linear layer: x [T, in_features] to [T, out_features]."""

    @property
    def out_features(self) -> int:
        """Columns of the result."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """x times the weight's transpose, plus the bias if there is one.

        Args:
            x: [T, in_features], contiguous.
            out: Takes the result; contiguous, of x's dtype or float32. None makes a new tensor.

        Returns:
            The result, which is `out` if that was given.
        """


class PlainLinear:
    """A weight as it is stored."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self.out_features = weight.shape[0]

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Linear."""
        return placed(F.linear(x, self._weight, self._bias), out)


class PackedLinear:
    """A weight in the blocked layout that oneDNN multiplies fastest with."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
        self._bias = bias
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self.out_features = weight.shape[0]

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Linear."""
        return placed(self._multiply(x, self._packed, self._bias, "none", [], ""), out)


class NativeLinear:
    """A weight in the layout of our own kernels, gated or not.

    `packed` is all that it holds: a layer made of an equal one, read back from anywhere, is the
    same layer.
    """

    def __init__(self, gemm: CpuGemm, packed: PackedWeight) -> None:
        self._gemm = gemm
        self.packed = packed
        self.out_features = packed.spec.num_results

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Linear."""
        if out is None:
            out = x.new_empty(x.shape[0], self.out_features)
        self._gemm.multiply(x, self.packed, out)
        return out


class SeparatelyGated:
    """silu(gate) * up after a layer whose outputs are the gate and then what it gates."""

    def __init__(self, gate_up: Linear, *, on_cpu: bool) -> None:
        self._gate_up = gate_up
        self.out_features = gate_up.out_features // 2
        library = load_library() if on_cpu else None
        self._rows = None if library is None else CpuRowKernels(library)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """See Linear."""
        gate_up = self._gate_up(x)
        if self._rows is None:
            return placed(silu_mul(gate_up), out)
        result = x.new_empty(len(x), self.out_features) if out is None else out
        self._rows.silu_mul(gate_up, result)
        return result


Weight = torch.Tensor | QuantizedWeight


def make_linear(
    weight: Weight, bias: torch.Tensor | None = None, *, deterministic: bool = False
) -> Linear:
    """The fastest layer for weight [out_features, in_features] on its device.

    Most layers do not keep `weight`: the caller should drop it too. Of a `deterministic` layer of
    our kernels, a row's result does not depend on the other rows.
    """
    native = _native(weight, bias, is_gated=False, deterministic=deterministic)
    return native or _torch(weight, bias)


def make_gated_linear(
    weight: Weight, bias: torch.Tensor | None = None, *, deterministic: bool = False
) -> Linear:
    """The fastest layer for silu(gate) * up, the first half of SwiGLU (Shazeer, 2020).

    Args:
        weight: [2 * out_features, in_features], the gate first.
        bias: [2 * out_features].
        deterministic: As for `make_linear`.
    """
    native = _native(weight, bias, is_gated=True, deterministic=deterministic)
    return native or SeparatelyGated(_torch(weight, bias), on_cpu=_device(weight).type == "cpu")


def multiplies_by_onednn(dtype: torch.dtype, *, deterministic: bool) -> bool:
    """Whether plain weights go to oneDNN though our kernels are there.

    It uses AMX, which has several times the throughput of the instructions that ours use, but sums
    in an order that depends on the number of rows.
    """
    return dtype == torch.bfloat16 and "amx_bf16" in cpu_flags() and not deterministic


def _device(weight: Weight) -> torch.device:
    return weight.device if isinstance(weight, torch.Tensor) else weight.codes.device


def packed_linear(packed: PackedWeight) -> NativeLinear:
    """The layer of a weight that was packed before. RuntimeError without our kernels."""
    library = load_library()
    if library is None:
        raise RuntimeError("packed weights need the CPU kernels, which are not there")
    return NativeLinear(cpu_gemm(library), packed)


def _native(
    weight: Weight, bias: torch.Tensor | None, *, is_gated: bool, deterministic: bool
) -> NativeLinear | None:
    """The layer of our kernels, if they are there and know the weight."""
    library = load_library()
    if library is None:
        return None
    gemm = cpu_gemm(library)
    if isinstance(weight, QuantizedWeight):
        return _native_quantized(gemm, weight, bias, is_gated=is_gated)
    if weight.device.type != "cpu":
        return None
    outputs, inputs = weight.shape
    if weight.dtype == torch.float32:
        spec = PackedSpec("float32", inputs, outputs, is_gated)
    elif weight.dtype == torch.bfloat16 and not multiplies_by_onednn(
        weight.dtype, deterministic=deterministic
    ):
        spec = PackedSpec("bfloat16", inputs, outputs, is_gated)
    else:
        return None
    return NativeLinear(gemm, gemm.pack(spec, weight, bias=bias))


def _native_quantized(
    gemm: CpuGemm, weight: QuantizedWeight, bias: torch.Tensor | None, *, is_gated: bool
) -> NativeLinear | None:
    if weight.codes.device.type != "cpu":
        return None
    size = (weight.num_inputs, weight.num_outputs, is_gated)
    is_int8 = weight.activations == "int8"
    if weight.bits == 4 and weight.group_size % GROUP_MULTIPLE == 0:
        spec = PackedSpec("int4_int8" if is_int8 else "int4", *size, weight.group_size)
    elif weight.bits == 8 and weight.zeros is None and weight.group_size == weight.num_inputs:
        spec = PackedSpec("int8_int8" if is_int8 else "int8", *size)
    else:
        return None
    packed = gemm.pack(
        spec,
        weight.codes,
        scales=weight.scales,
        zeros=weight.zeros,
        bias=bias,
        input_order=weight.input_order,
    )
    return NativeLinear(gemm, packed)


def _torch(weight: Weight, bias: torch.Tensor | None) -> Linear:
    if isinstance(weight, QuantizedWeight):
        return ReferenceQuantizedLinear(weight, bias)
    if weight.device.type == "cpu" and onednn_packs(weight.dtype):
        return PackedLinear(weight, bias)
    return PlainLinear(weight, bias)


def onednn_packs(dtype: torch.dtype) -> bool:
    """Whether oneDNN has its own layout for weights of this dtype on this processor."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
