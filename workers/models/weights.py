"""From stored tensors to layers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from workers.layers.linear import Linear, make_linear
from workers.layers.sharding import Shard
from workers.models.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Weights:
    """Reads one rank's layers out of a checkpoint, in one dtype, onto one device."""

    checkpoint: Checkpoint
    shard: Shard
    dtype: torch.dtype
    device: torch.device

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor that every rank holds whole."""
        return self.checkpoint.read(name, shape, self.dtype).to(self.device)

    def column_parallel(
        self, prefix: str, outputs: Mapping[str, int], num_inputs: int, *, bias: bool
    ) -> Linear:
        """One layer out of several that share an input, each cut along its output features.

        Args:
            prefix: Of the tensors' names.
            outputs: The layers' names and whole output sizes, in the order of the result.
            num_inputs: Input features.
            bias: Whether the layers have biases.
        """
        weights, biases = [], []
        for name, size in outputs.items():
            part = (self.shard.part(size),)
            weights.append(self._read(f"{prefix}.{name}.weight", (size, num_inputs), part))
            if bias:
                biases.append(self._read(f"{prefix}.{name}.bias", (size,), part))
        return make_linear(_joined(weights), _joined(biases) if bias else None)

    def row_parallel(self, prefix: str, num_inputs: int, num_outputs: int, *, bias: bool) -> Linear:
        """A layer cut along its input features, whose outputs are to be summed over the ranks.

        The bias is the first rank's, so that the sum holds it once.
        """
        part = (slice(None), self.shard.part(num_inputs))
        weight = self._read(f"{prefix}.weight", (num_outputs, num_inputs), part)
        has_bias = bias and self.shard.rank == 0
        return make_linear(
            weight.contiguous(),
            self._read(f"{prefix}.bias", (num_outputs,), ()) if has_bias else None,
        )

    def _read(self, name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> torch.Tensor:
        return self.checkpoint.read(name, shape, self.dtype, part).to(self.device)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
