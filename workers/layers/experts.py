"""The experts that a rank holds."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from workers.kernels.cpu_experts import CpuExperts, ExpertTable, PackedExpert
from workers.kernels.library import Library
from workers.layers.linear import Linear, NativeLinear
from workers.layers.router import Routing


class ExpertLayers(NamedTuple):
    """SwiGLU in two layers, like GatedMlp."""

    gated: Linear
    down: Linear


class SharedRows(NamedTuple):
    """What an expert that every row goes to makes of them."""

    rows: torch.Tensor
    """[T, hidden_size]"""
    gate: torch.Tensor
    """float32 [T, 1]: rows are multiplied with its sigmoid."""


class Experts(Protocol):
    """The experts of one layer in some of its slots."""

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do all of it."""

    def __call__(
        self, x: torch.Tensor, routing: Routing, shared: SharedRows | None, out: torch.Tensor
    ) -> None:
        """Each row through those of its experts that are here, weighted and summed in float32.

        Args:
            x: [T, hidden_size].
            routing: Of these rows.
            shared: To be added, if there is any.
            out: [T, hidden_size], filled.
        """

    def check(self, expert: ExpertLayers) -> None:
        """Raise ValueError if an expert cannot be put beside these."""

    def put(self, slot: int, expert: ExpertLayers) -> None:
        """Have a slot, counted among these, hold another expert from the next call on.

        Raises what `check` does.
        """


class NativeExperts:
    """All experts' products in one call of our own kernels."""

    is_native = True

    def __init__(self, library: Library, experts: Sequence[PackedExpert], first_slot: int) -> None:
        """Of the slots from first_slot on."""
        self._kernels = CpuExperts(library)
        self._table = ExpertTable(experts)
        self._first_slot = first_slot

    def __call__(
        self, x: torch.Tensor, routing: Routing, shared: SharedRows | None, out: torch.Tensor
    ) -> None:
        """See Experts."""
        rows, gate = (None, None) if shared is None else shared
        self._kernels.multiply(
            x, *routing, self._table, self._first_slot, out, shared=rows, shared_gate=gate
        )

    def check(self, expert: ExpertLayers) -> None:
        """See Experts."""
        self._checked(expert)

    def put(self, slot: int, expert: ExpertLayers) -> None:
        """See Experts."""
        self._table.put(slot, self._checked(expert))

    def _checked(self, expert: ExpertLayers) -> PackedExpert:
        packed = _packed(expert)
        if packed is None:
            raise ValueError("an expert's gate and up are quantized apart, unlike those beside it")
        return packed


class TorchExperts:
    """The reference, for any layers on any device: one expert after the other, each on its rows."""

    is_native = False

    def __init__(self, experts: Sequence[ExpertLayers], first_slot: int) -> None:
        """Of the slots from first_slot on."""
        self._experts = list(experts)
        self._first_slot = first_slot

    def __call__(
        self, x: torch.Tensor, routing: Routing, shared: SharedRows | None, out: torch.Tensor
    ) -> None:
        """See Experts."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        if shared is not None:
            total += shared.rows * shared.gate.sigmoid()
        slots, weights = routing.slots.flatten() - self._first_slot, routing.weights.flatten()
        pairs = slots.argsort(stable=True)
        counts = [int((slots < 0).sum())]
        counts += slots[slots >= 0].bincount(minlength=len(self._experts)).tolist()
        parts = pairs.split_with_sizes(counts)[1 : len(self._experts) + 1]
        for (gated, down), chosen in zip(self._experts, parts, strict=True):
            if len(chosen):
                rows = chosen // routing.slots.shape[1]
                result = down(gated(x[rows])).float()
                total.index_add_(0, rows, result * weights[chosen].unsqueeze(1))
        out.copy_(total)

    def check(self, expert: ExpertLayers) -> None:
        """See Experts."""

    def put(self, slot: int, expert: ExpertLayers) -> None:
        """See Experts."""
        self._experts[slot] = expert


def make_experts(
    experts: Sequence[ExpertLayers], first_slot: int, library: Library | None
) -> Experts:
    """The fastest for layers as they are; they may be of different kinds."""
    packed = [expert for expert in map(_packed, experts) if expert is not None]
    if library is not None and len(packed) == len(experts):
        return NativeExperts(library, packed, first_slot)
    return TorchExperts(experts, first_slot)


def _packed(expert: ExpertLayers) -> PackedExpert | None:
    gated, down = expert
    if isinstance(gated, NativeLinear) and isinstance(down, NativeLinear):
        return PackedExpert(gated.packed, down.packed)
    return None
