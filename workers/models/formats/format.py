"""What a format of quantized checkpoints can do."""

from math import gcd
from typing import NamedTuple, Protocol

import torch

from workers.models.checkpoint import Checkpoint
from workers.models.errors import UnsupportedModelError
from workers.quantization.quantized_weight import QuantizedWeight

LEAST_GROUP = 32
"""Inputs of the smallest group that kernels multiply."""


class WeightPart(NamedTuple):
    """What one rank reads of a linear module's weight."""

    module: str
    """Name without ".weight"."""
    shape: tuple[int, int]
    """Outputs and inputs of the whole weight."""
    rows: slice
    """Outputs that the rank holds."""
    columns: slice
    """Inputs that the rank holds."""

    @property
    def has_all_inputs(self) -> bool:
        """Whether the weight is not cut along its inputs."""
        return (self.columns.start, self.columns.stop) == (0, self.shape[1])

    def packed_rows(self, count: int) -> slice:
        """`rows` where `count` outputs share an entry; raises UnsupportedModelError."""
        return self._packed(self.rows, self.shape[0], count, "outputs")

    def packed_columns(self, count: int) -> slice:
        """`columns` where `count` inputs share an entry; raises UnsupportedModelError."""
        return self._packed(self.columns, self.shape[1], count, "inputs")

    def _packed(self, span: slice, size: int, count: int, noun: str) -> slice:
        if span.start % count or (span.stop % count and span.stop != size):
            raise UnsupportedModelError(
                f"{self.module}: a rank's {noun} are {span.start} to {span.stop} of {size}, "
                f"expected multiples of {count}, which belong together; "
                f"{_fitting_ranks(size, count)} ranks can divide them"
            )
        return slice(span.start // count, -(-span.stop // count))


def _fitting_ranks(size: int, count: int) -> str:
    """Into how many equal parts of whole `count`s `size` can be cut."""
    whole = size // count
    fits = [n for n in range(1, whole + 1) if size % count == 0 and whole % n == 0]
    return ", ".join(map(str, fits or [1]))


class QuantizedFormat(Protocol):
    """Reads the quantized weights of one checkpoint."""

    def holds(self, checkpoint: Checkpoint, module: str) -> bool:
        """Whether the module's weight is stored quantized, and not plainly."""

    def read(self, checkpoint: Checkpoint, part: WeightPart) -> QuantizedWeight:
        """A weight, or a rank's part of it.

        Raises UnsupportedModelError for what is not supported, CheckpointError for tensors that
        are missing or misshaped.
        """


def group_count(part: WeightPart, group_size: int) -> int:
    """Groups of the whole weight's inputs; raises UnsupportedModelError if they are uneven."""
    inputs = part.shape[1]
    if inputs % group_size:
        raise UnsupportedModelError(
            f"{part.module}: quantization_config.group_size is {group_size}, expected a divisor "
            f"of {inputs} inputs"
        )
    return inputs // group_size


class GroupSpan(NamedTuple):
    """The groups that a rank's inputs are of, cut where the rank's part is."""

    columns: slice
    """The groups among the weight's."""
    size: int
    """Inputs of each group after cutting."""
    copies: int
    """Pieces that each group is cut into."""
    pieces: slice
    """The rank's among all pieces of `columns`."""

    def cut(self, table: torch.Tensor) -> torch.Tensor:
        """Of scales or zeros [N, groups of `columns`], those of the rank's pieces."""
        return table.repeat_interleave(self.copies, dim=1)[:, self.pieces].contiguous()


def group_span(part: WeightPart, group_size: int) -> GroupSpan:
    """What a rank reads of scales and zeros.

    A group that lies on both sides of a cut is divided, which changes nothing, into equal pieces
    of at least LEAST_GROUP inputs. Raises UnsupportedModelError where that cannot be.
    """
    start, stop = part.columns.start, part.columns.stop
    columns = slice(start // group_size, -(-stop // group_size))
    if columns.stop - columns.start == 1:
        return GroupSpan(columns, stop - start, 1, slice(0, 1))
    part.packed_columns(gcd(group_size, LEAST_GROUP))
    size = gcd(group_size, start, stop)
    first = columns.start * group_size
    pieces = slice((start - first) // size, (stop - first) // size)
    return GroupSpan(columns, size, group_size // size, pieces)


def input_order(group_of: torch.Tensor, part: WeightPart, group_size: int) -> torch.Tensor | None:
    """The order that brings each group's inputs together, from each input's group, int64 [K].

    None where they are together already. Raises UnsupportedModelError if groups differ in size, or
    if they are spread out and the rank holds only some of the inputs.
    """
    together = torch.arange(part.shape[1]) // group_size
    if torch.equal(group_of, together):
        return None
    order = torch.argsort(group_of, stable=True)
    if not torch.equal(group_of[order], together):
        raise UnsupportedModelError(
            f"{part.module}: g_idx has groups of several sizes, expected {group_size} inputs each"
        )
    if not part.has_all_inputs:
        raise UnsupportedModelError(
            f"{part.module}: desc_act spreads groups over all inputs, expected desc_act false "
            "where ranks share the inputs"
        )
    return order
