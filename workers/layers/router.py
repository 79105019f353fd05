"""Which experts each row goes to."""

from typing import NamedTuple, Protocol

import torch

from workers.kernels.cpu_experts import CpuExperts
from workers.kernels.library import Library
from workers.kernels.routing_reference import route
from workers.layers.expert_buffers import ExpertBuffers
from workers.layers.expert_placement import SlotTable
from workers.layers.linear import Linear, NativeLinear


class Routing(NamedTuple):
    """Where rows go, and what counts of what comes back."""

    slots: torch.Tensor
    """int32 [T, k]: of each row's experts, all ranks' slots numbered through; -1 in padding."""
    weights: torch.Tensor
    """float32 [T, k]"""


class _Route(Protocol):
    def __call__(
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
    ) -> None: ...


class Router:
    """A linear layer whose outputs, as a softmax in float32, choose each row's experts."""

    def __init__(
        self, gate: Linear, table: SlotTable, library: Library | None, *, renormalises: bool
    ) -> None:
        """Of `gate`, hidden_size to num_experts; see `route` for the rest."""
        self._gate = gate
        self._table = table
        self._route: _Route = route if library is None else CpuExperts(library).route
        self._renormalises = renormalises
        self.is_native = library is not None and isinstance(gate, NativeLinear)
        """Whether our own CPU kernels do all of it."""

    def __call__(
        self,
        x: torch.Tensor,
        buffers: ExpertBuffers,
        num_real: torch.Tensor,
        load: torch.Tensor,
        first_row: int,
    ) -> Routing:
        """Route rows.

        Args:
            x: [T, hidden_size].
            buffers: Of T rows; hold the result.
            num_real: int64 [1]: rows of the batch from this one on are padding.
            load: int64 [num_experts]; each expert's rows are added to it.
            first_row: Which row of the batch is x's first.
        """
        self._route(
            self._gate(x, buffers.logits),
            num_real,
            self._table.copies,
            self._table.places,
            load,
            buffers.slots,
            buffers.weights,
            renormalises=self._renormalises,
            first_row=first_row,
        )
        return Routing(buffers.slots, buffers.weights)
