"""Routing of rows to experts, and the experts' products, by the CPU kernels."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from workers.kernels.arguments import check_tensor, matrix_shape
from workers.kernels.cpu_gemm import ARITHMETICS, PackedWeight
from workers.kernels.library import Library, dtype_code


class _PackedLinear(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("zeros", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("input_order", ctypes.c_void_p),
        ("num_inputs", ctypes.c_int64),
        ("num_outputs", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("arithmetic", ctypes.c_int32),
        ("gated", ctypes.c_int32),
    )


class _Expert(ctypes.Structure):
    _fields_ = (("gated", _PackedLinear), ("down", _PackedLinear))


class _Route(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("num_real", ctypes.c_void_p),
        ("copies", ctypes.c_void_p),
        ("places", ctypes.c_void_p),
        ("load", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_experts", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("max_copies", ctypes.c_int64),
        ("first_row", ctypes.c_int64),
        ("renormalises", ctypes.c_int32),
    )


class _Experts(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("experts", ctypes.c_void_p),
        ("shared", ctypes.c_void_p),
        ("shared_gate", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("inner", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("first_slot", ctypes.c_int64),
        ("num_slots", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
    )


class PackedExpert(NamedTuple):
    """The two products of an expert: [inner, width] twice, gated, then [width, inner]."""

    gated: PackedWeight
    down: PackedWeight


class ExpertTable:
    """The packed experts of some slots, as the kernel finds them.

    An expert that is put into a slot is used from the next call on, in recorded programs too.
    """

    def __init__(self, experts: Sequence[PackedExpert]) -> None:
        """Raises ValueError, naming the slot, if an expert has not the first one's size."""
        self._experts = list(experts)
        self._array = (_Expert * len(experts))()
        first = experts[0].gated.spec
        self.width, self.inner = first.num_inputs, first.num_results
        for slot, expert in enumerate(experts):
            self.put(slot, expert)

    def __len__(self) -> int:
        return len(self._experts)

    @property
    def address(self) -> int:
        """Of the first slot."""
        return ctypes.addressof(self._array)

    def put(self, slot: int, expert: PackedExpert) -> None:
        """Replace what a slot holds. Raises ValueError if it is of another size."""
        gated, down = expert.gated.spec, expert.down.spec
        sizes = (gated.num_inputs, gated.num_results, down.num_inputs, down.num_results)
        expected = (self.width, self.inner, self.inner, self.width)
        if sizes != expected or not gated.is_gated or down.is_gated:
            raise ValueError(f"expert of slot {slot}: got sizes {sizes}, expected {expected}")
        self._array[slot] = _Expert(_packed(expert.gated), _packed(expert.down))
        self._experts[slot] = expert


class CpuExperts:
    """Sends rows to experts, and multiplies them there."""

    def __init__(self, library: Library) -> None:
        self._route = library.kernel("route", _Route)
        self._experts = library.kernel("experts", _Experts)

    def route(
        self,
        logits: torch.Tensor,
        num_real: torch.Tensor,
        copies: torch.Tensor,
        places: torch.Tensor,
        load: torch.Tensor,
        slots: torch.Tensor,
        weights: torch.Tensor,
        *,
        renormalises: bool,
        first_row: int = 0,
    ) -> None:
        """See `route` of routing_reference, whose arguments these are.

        The contents of `num_real`, `copies` and `places` are not checked: they may change between
        plays of a program.

        Raises TypeError or ValueError, naming the argument, if a dtype or shape is not as said.
        """
        num_rows, num_experts = matrix_shape("logits", logits)
        top_k = slots.shape[-1]
        check_tensor("logits", logits, torch.float32, (num_rows, num_experts))
        check_tensor("num_real", num_real, torch.int64, (1,))
        check_tensor("copies", copies, torch.int32, (num_experts,))
        check_tensor("places", places, torch.int32, (num_experts, places.shape[-1]))
        check_tensor("load", load, torch.int64, (num_experts,))
        check_tensor("slots", slots, torch.int32, (num_rows, top_k))
        check_tensor("weights", weights, torch.float32, (num_rows, top_k))
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"slots: got {top_k} for a row, expected 1 to {num_experts}")
        tensors = (logits, num_real, copies, places, load, slots, weights)
        args = _Route(
            *(tensor.data_ptr() for tensor in tensors),
            num_rows,
            num_experts,
            top_k,
            places.shape[-1],
            first_row,
            int(renormalises),
        )
        self._route(args, *tensors)

    def multiply(
        self,
        x: torch.Tensor,
        slots: torch.Tensor,
        weights: torch.Tensor,
        experts: ExpertTable,
        first_slot: int,
        out: torch.Tensor,
        *,
        shared: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
    ) -> None:
        """Each row's experts, weighted and summed in float32, into `out`.

        What of a row's experts is in other slots than these is left out. A row's result does not
        depend on the other rows.

        Args:
            x: [T, width], float32 or bfloat16.
            slots: int32 [T, top_k]; not checked, as they may change between plays of a program.
            weights: float32 [T, top_k].
            experts: Of the slots from first_slot on.
            first_slot: See `experts`.
            out: [T, width], of x's dtype.
            shared: [T, width], of x's dtype, to be added.
            shared_gate: float32 [T, 1]: `shared` is multiplied with its sigmoid.

        Raises:
            TypeError: A tensor's dtype is another.
            ValueError: A tensor has another shape, or gaps.
        """
        num_rows, width = matrix_shape("x", x)
        check_tensor("x", x, x.dtype, (num_rows, experts.width))
        check_tensor("slots", slots, torch.int32, (num_rows, slots.shape[-1]))
        check_tensor("weights", weights, torch.float32, tuple(slots.shape))
        check_tensor("out", out, x.dtype, (num_rows, width))
        if shared is not None:
            check_tensor("shared", shared, x.dtype, (num_rows, width))
        if shared is not None and shared_gate is not None:
            check_tensor("shared_gate", shared_gate, torch.float32, (num_rows, 1))
        elif shared is not None or shared_gate is not None:
            raise ValueError("shared, shared_gate: got one of them, expected both or none")
        args = _Experts(
            x.data_ptr(),
            slots.data_ptr(),
            weights.data_ptr(),
            experts.address,
            None if shared is None else shared.data_ptr(),
            None if shared_gate is None else shared_gate.data_ptr(),
            out.data_ptr(),
            num_rows,
            width,
            experts.inner,
            slots.shape[-1],
            first_slot,
            len(experts),
            dtype_code(x.dtype),
        )
        self._experts(args, x, slots, weights, experts, shared, shared_gate, out)


def _packed(weight: PackedWeight) -> _PackedLinear:
    spec, tensors = weight
    names = ("weight", "scales", "zeros", "bias", "input_order")
    parts = (tensors.get(name) for name in names)
    return _PackedLinear(
        *(None if part is None else part.data_ptr() for part in parts),
        spec.num_inputs,
        spec.num_outputs,
        spec.group_size,
        ARITHMETICS.index(spec.arithmetic),
        int(spec.is_gated),
    )
