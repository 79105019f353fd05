"""Products of activations with fixed weights, y = x w^T, by the CPU kernels.

A weight is packed once, into a layout that all instruction sets share (native/gemm.h), so that a
packed weight may be kept on disk and used on another machine.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import torch

from workers.kernels.arguments import ROW_DTYPES
from workers.kernels.library import Kernel, Library, dtype_code

PANEL = 16
"""Outputs that are packed together; their number is padded to a multiple of it."""

STEP_BYTES = 64
"""A panel is a run of steps of so many bytes, each with a few inputs of all its outputs."""

GROUP_MULTIPLE = 32
"""Inputs of which int4's groups hold one or more."""

Arithmetic = Literal["float32", "bfloat16", "int8", "int8_int8", "int4", "int4_int8"]
"""Of weights and, after the underscore, activations; where there is none these stay as they are.

With int8 activations, each row of x is made int8 with one scale, its largest absolute value / 127.
Sums of integers are exact, in int32; int4's within each group. All else is summed in float32, in
the order of the inputs.
"""


class _Format(NamedTuple):
    """How an arithmetic's weight is packed."""

    code: int
    dtype: torch.dtype
    inputs_per_step: int


_FORMATS: dict[Arithmetic, _Format] = {
    "float32": _Format(0, torch.float32, 1),
    "bfloat16": _Format(1, torch.bfloat16, 2),
    "int8": _Format(2, torch.int8, 4),
    "int8_int8": _Format(2, torch.int8, 4),
    "int4": _Format(3, torch.uint8, 8),
    "int4_int8": _Format(3, torch.uint8, 8),
}
ARITHMETICS = tuple(_FORMATS)


@dataclass(frozen=True, slots=True)
class PackedSpec:
    """What a packed weight is; its tensors' shapes follow from it."""

    arithmetic: Arithmetic
    num_inputs: int
    num_outputs: int
    """Of the weight. A gated product has half as many results."""
    is_gated: bool = False
    """The result is silu(first half of the outputs) * second half."""
    group_size: int = 0
    """int4: inputs that share a scale, a multiple of 32."""

    @property
    def num_results(self) -> int:
        """Columns of the product."""
        return self.num_outputs // 2 if self.is_gated else self.num_outputs

    @property
    def num_panels(self) -> int:
        """Panels of the packed weight, padding included."""
        return -(-self.num_results // PANEL) * (2 if self.is_gated else 1)

    @property
    def num_groups(self) -> int:
        """Groups of inputs with a scale of their own, for each output."""
        return self.num_inputs // self.group_size if self.group_size else 1

    @property
    def weight_bytes(self) -> int:
        """Size of the packed weight without scales and zeros."""
        num_steps = -(-self.num_inputs // _FORMATS[self.arithmetic].inputs_per_step)
        return self.num_panels * num_steps * STEP_BYTES


class PackedWeight(NamedTuple):
    """A weight as the kernels read it."""

    spec: PackedSpec
    tensors: Mapping[str, torch.Tensor]
    """weight: uint8 [spec.weight_bytes]; where there are any: scales, float32 [panels, groups, 16];
    zeros, uint8 of the same shape; bias, float32 [panels * 16]; input_order, int32 [inputs]."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors: what a product reads beside x."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class _PackArgs(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("num_outputs", ctypes.c_int64),
        ("num_inputs", ctypes.c_int64),
        ("format", ctypes.c_int32),
        ("gated", ctypes.c_int32),
    )


class _LinearArgs(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("input_order", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_inputs", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("out_dtype", ctypes.c_int32),
        ("gated", ctypes.c_int32),
    )


class CpuGemm:
    """Packs weights and multiplies with them."""

    def __init__(self, library: Library) -> None:
        self._pack = library.kernel("pack_linear", _PackArgs)
        self._linear: dict[str, Kernel] = {
            arithmetic: library.kernel(f"linear_{arithmetic}", _LinearArgs)
            for arithmetic in _FORMATS
        }

    def pack(
        self,
        spec: PackedSpec,
        weight: torch.Tensor,
        *,
        scales: torch.Tensor | None = None,
        zeros: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        input_order: torch.Tensor | None = None,
    ) -> PackedWeight:
        """Lay out a weight for `multiply`. Nothing that is given is kept.

        Args:
            spec: What the weight is.
            weight: [num_outputs, num_inputs] in the arithmetic's dtype; int4: uint8 codes 0..15.
            scales: int8: float32 [num_outputs, 1]; int4: float32 [num_outputs, groups].
            zeros: int4: uint8 [num_outputs, groups], the codes that mean zero; None: all are 8.
            bias: [num_outputs].
            input_order: Input k of the weight is x[:, input_order[k]].

        Raises:
            TypeError: A tensor's dtype is not the one above.
            ValueError: A tensor's shape, or the spec's group size, is not what is accepted.
        """
        format_ = _FORMATS[spec.arithmetic]
        shape = (spec.num_outputs, spec.num_inputs)
        _check_spec(spec)
        _check("weight", weight, shape, format_.dtype)
        packed = torch.empty(spec.weight_bytes, dtype=torch.uint8)
        source = weight.contiguous()
        args = _PackArgs(
            source.data_ptr(), packed.data_ptr(), *shape, format_.code, int(spec.is_gated)
        )
        self._pack(args, source, packed)
        tensors = {"weight": packed}
        if spec.arithmetic.startswith("int"):
            if scales is None:
                raise ValueError(f"scales: got None, expected them for {spec.arithmetic}")
            tensors["scales"] = _by_panel(spec, "scales", scales, torch.float32)
        if zeros is not None:
            if not spec.arithmetic.startswith("int4"):
                raise ValueError(f"zeros: got some, expected None for {spec.arithmetic}")
            tensors["zeros"] = _by_panel(spec, "zeros", zeros, torch.uint8)
        if bias is not None:
            _check("bias", bias, (spec.num_outputs,), bias.dtype)
            column = bias.float().unsqueeze(-1)
            tensors["bias"] = _panels(spec, column).flatten()
        if input_order is not None:
            _check("input_order", input_order, (spec.num_inputs,), input_order.dtype)
            tensors["input_order"] = input_order.to(torch.int32)
        return PackedWeight(spec, tensors)

    def multiply(self, x: torch.Tensor, weight: PackedWeight, out: torch.Tensor) -> None:
        """x w^T, plus the bias if there is one, and gated if the spec says so, into `out`.

        Rows do not depend on each other, nor on how many there are. A gated product's halves are
        not rounded between: silu and the product are of float32.

        Args:
            x: [rows, num_inputs], contiguous, float32 or bfloat16; with floating-point weights, of
                their dtype.
            weight: As packed.
            out: [rows, num_results], contiguous, float32 or bfloat16.

        Raises:
            TypeError: x or out is of another dtype.
            ValueError: x or out is of another shape, or not contiguous.
        """
        spec, tensors = weight
        _check_x(spec, x)
        _check("out", out, (x.shape[0], spec.num_results), *ROW_DTYPES)
        if not out.is_contiguous():
            raise ValueError(f"out: got strides {out.stride()}, expected a contiguous tensor")
        tables = (tensors.get(name) for name in ("scales", "zeros", "bias", "input_order"))
        args = _LinearArgs(
            x.data_ptr(),
            None,
            tensors["weight"].data_ptr(),
            *(None if table is None else table.data_ptr() for table in tables),
            out.data_ptr(),
            x.shape[0],
            spec.num_inputs,
            spec.num_outputs,
            spec.group_size,
            dtype_code(x.dtype),
            dtype_code(out.dtype),
            int(spec.is_gated),
        )
        self._linear[spec.arithmetic](args, x, weight, out)


@cache
def cpu_gemm(library: Library) -> CpuGemm:
    """The one CpuGemm of a library."""
    return CpuGemm(library)


def _panels(spec: PackedSpec, table: torch.Tensor) -> torch.Tensor:
    """[num_outputs, groups] as [panels, groups, 16], the halves of a gated one in turns."""
    halves = 2 if spec.is_gated else 1
    rows = table.view(halves, spec.num_results, -1)
    padded = rows.new_zeros(halves, spec.num_panels // halves * PANEL, rows.shape[-1])
    padded[:, : spec.num_results] = rows
    in_turns = padded.view(halves, -1, PANEL, rows.shape[-1]).permute(1, 0, 3, 2)
    return in_turns.reshape(spec.num_panels, rows.shape[-1], PANEL).contiguous()


def _by_panel(spec: PackedSpec, name: str, table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    _check(name, table, (spec.num_outputs, spec.num_groups), dtype)
    return _panels(spec, table.contiguous())


def _check_spec(spec: PackedSpec) -> None:
    if spec.is_gated and spec.num_outputs % 2:
        raise ValueError(f"num_outputs: got {spec.num_outputs}, expected two halves to be gated")
    size = spec.group_size
    if spec.arithmetic.startswith("int4"):
        if size < 1 or size % GROUP_MULTIPLE or spec.num_inputs % size:
            raise ValueError(
                f"group_size: got {size}, expected a multiple of {GROUP_MULTIPLE} that divides "
                f"{spec.num_inputs}"
            )
    elif size:
        raise ValueError(f"group_size: got {size}, expected 0 for {spec.arithmetic}")


def _check_x(spec: PackedSpec, x: torch.Tensor) -> None:
    accepted = (x.dtype,) if x.dtype in ROW_DTYPES else ROW_DTYPES
    if not spec.arithmetic.startswith("int"):
        accepted = (_FORMATS[spec.arithmetic].dtype,)
    if x.dtype not in accepted:
        raise TypeError(f"x: got {x.dtype}, expected {' or '.join(map(str, accepted))}")
    if x.dim() != 2 or x.shape[1] != spec.num_inputs or not x.is_contiguous():
        raise ValueError(
            f"x: got shape {tuple(x.shape)} and strides {x.stride()}, "
            f"expected a contiguous [rows, {spec.num_inputs}]"
        )


def _check(name: str, tensor: torch.Tensor, shape: tuple[int, ...], *accepted: torch.dtype) -> None:
    if tensor.dtype not in accepted:
        expected = " or ".join(map(str, accepted))
        raise TypeError(f"{name}: got {tensor.dtype}, expected {expected}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: got shape {tuple(tensor.shape)}, expected {shape}")
