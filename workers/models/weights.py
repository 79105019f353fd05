"""From stored tensors to layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from workers.layers.linear import (
    Linear,
    NativeLinear,
    SeparatelyGated,
    make_gated_linear,
    make_linear,
    packed_linear,
)
from workers.layers.sharding import Shard
from workers.layers.split_linear import SplitLinear
from workers.models.checkpoint import Checkpoint
from workers.models.formats.format import QuantizedFormat, WeightPart
from workers.models.packed_cache import CachedWeight, PackedCache
from workers.quantization.plan import HEAD, QuantizationPlan
from workers.quantization.quantized_weight import QuantizedWeight, can_join, join
from workers.quantization.served_form import served_form

Weight = torch.Tensor | QuantizedWeight


class Outputs(NamedTuple):
    """The output features of one linear module."""

    size: int
    """Of the whole module."""
    part: slice
    """Those that this rank holds."""


class _Module(NamedTuple):
    """One rank's part of one linear module."""

    weight: Weight
    bias: torch.Tensor | None


@dataclass(slots=True)
class Weights:
    """Reads one rank's layers out of a checkpoint, in one dtype, onto one device.

    Weights that the checkpoint stores quantized stay so; the others are quantized as planned.
    """

    checkpoint: Checkpoint
    shard: Shard
    dtype: torch.dtype
    device: torch.device
    quantized: QuantizedFormat | None = None
    """How the checkpoint stores quantized weights, if it does."""
    plan: QuantizationPlan = field(default_factory=QuantizationPlan)
    cache: PackedCache | None = None
    """Of packed layers; none where layers are not our kernels'."""
    deterministic: bool = False
    """Whether layers must be so (see make_linear)."""
    num_bytes: int = 0
    """Of all that was read, as it is kept: packed codes, scales, zeros, and plain tensors."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor that every rank holds whole."""
        return self._plain(name, shape, ())

    def rows(self, name: str, shape: tuple[int, ...], part: slice) -> torch.Tensor:
        """Some rows of a tensor."""
        is_whole = part == slice(0, shape[0])
        return self._plain(name, shape, () if is_whole else (part,))

    def outputs(self, size: int) -> Outputs:
        """This rank's equal part of a module's output features."""
        return Outputs(size, self.shard.part(size))

    def column_parallel(
        self, prefix: str, outputs: Mapping[str, Outputs], num_inputs: int, *, bias: bool
    ) -> Linear:
        """One layer out of several that share an input, each cut along its output features.

        Args:
            prefix: Of the tensors' names.
            outputs: Of each layer by its name, in the order of the result.
            num_inputs: Input features.
            bias: Whether the layers have biases.
        """

        def make() -> Linear:
            modules = self._modules(prefix, outputs, num_inputs, bias=bias)
            if not _can_fuse(modules):
                return self._split(modules)
            return make_linear(*_fused(modules), deterministic=self.deterministic)

        return self._layer(prefix, make)

    def gated(
        self, prefix: str, outputs: Mapping[str, Outputs], num_inputs: int, *, bias: bool
    ) -> Linear:
        """Like `column_parallel` of a gate and what it gates, their activation included."""

        def make() -> Linear:
            modules = self._modules(prefix, outputs, num_inputs, bias=bias)
            if not _can_fuse(modules):
                return SeparatelyGated(self._split(modules), on_cpu=self.device.type == "cpu")
            return make_gated_linear(*_fused(modules), deterministic=self.deterministic)

        return self._layer(prefix, make)

    def _modules(
        self, prefix: str, outputs: Mapping[str, Outputs], num_inputs: int, *, bias: bool
    ) -> list[_Module]:
        modules = []
        for name, (size, rows) in outputs.items():
            part = WeightPart(f"{prefix}.{name}", (size, num_inputs), rows, slice(0, num_inputs))
            bias_part = self._plain(f"{part.module}.bias", (size,), (rows,)) if bias else None
            modules.append(_Module(self._weight(part), bias_part))
        return modules

    def row_parallel(self, prefix: str, num_inputs: int, num_outputs: int, *, bias: bool) -> Linear:
        """A layer cut along its input features, whose outputs are to be summed over the ranks.

        The bias is the first rank's, so that the sum holds it once.
        """

        def make() -> Linear:
            columns = self.shard.part(num_inputs)
            part = WeightPart(prefix, (num_outputs, num_inputs), slice(0, num_outputs), columns)
            has_bias = bias and self.shard.rank == 0
            if bias and not has_bias:
                self.checkpoint.pass_over(f"{prefix}.bias")
            return make_linear(
                self._weight(part),
                self._plain(f"{prefix}.bias", (num_outputs,), ()) if has_bias else None,
                deterministic=self.deterministic,
            )

        return self._layer(prefix, make)

    def head(self, vocab: Outputs, num_inputs: int) -> Linear:
        """The head, cut along the vocabulary."""

        def make() -> Linear:
            part = WeightPart(HEAD, (vocab.size, num_inputs), vocab.part, slice(0, num_inputs))
            return make_linear(self._weight(part), deterministic=self.deterministic)

        return self._layer(HEAD, make)

    def tied_head(self, embedding: torch.Tensor) -> Linear:
        """A head whose weight is this rank's part of the embedding; quantized in a copy."""

        def make() -> Linear:
            weight = self._counted(self.plan.apply(HEAD, embedding))
            return make_linear(weight, deterministic=self.deterministic)

        return self._layer(HEAD, make)

    def _split(self, modules: Sequence[_Module]) -> Linear:
        return SplitLinear(
            [make_linear(*module, deterministic=self.deterministic) for module in modules]
        )

    def _layer(self, name: str, make: Callable[[], Linear]) -> Linear:
        """A layer from the cache, or else made, and noted for the next run if it can be kept."""
        if self.cache is None:
            return make()
        if (cached := self.cache.get(name)) is not None:
            self.num_bytes += cached.num_bytes
            return packed_linear(cached.packed)
        before = self.num_bytes
        layer = make()
        if isinstance(layer, NativeLinear):
            self.cache.add(name, CachedWeight(layer.packed, self.num_bytes - before))
        return layer

    def _weight(self, part: WeightPart) -> Weight:
        if self.quantized is not None and self.quantized.holds(self.checkpoint, part.module):
            if self.plan.override(part.module) is not None:
                raise ValueError(
                    f"engine.quantization_overrides: got a pattern for {part.module}, expected "
                    "patterns for what the checkpoint does not store quantized"
                )
            weight = served_form(self.quantized.read(self.checkpoint, part), self.dtype)
        else:
            weight = self._planned(part)
        return self._counted(weight.to(self.device))

    def _planned(self, part: WeightPart) -> Weight:
        """A weight that is stored plainly; one to be quantized is not rounded before."""
        scheme = self.plan.scheme_of(part.module)
        dtype = self.dtype if scheme == "none" else torch.float32
        is_whole = part.has_all_inputs and part.rows == slice(0, part.shape[0])
        spans = () if is_whole else (part.rows, part.columns)
        if scheme == "int4" and part.shape[1] % self.plan.group_size == 0:
            part.packed_columns(self.plan.group_size)
        weight = self.checkpoint.read(f"{part.module}.weight", part.shape, dtype, spans)
        return self.plan.apply(part.module, weight.contiguous())

    def _plain(self, name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> torch.Tensor:
        tensor = self.checkpoint.read(name, shape, self.dtype, part).to(self.device)
        self.num_bytes += tensor.nbytes
        return tensor

    def _counted(self, weight: Weight) -> Weight:
        if isinstance(weight, torch.Tensor):
            self.num_bytes += weight.nbytes
        else:
            self.num_bytes += weight.packed_bytes
        return weight


def _can_fuse(modules: Sequence[_Module]) -> bool:
    """Whether modules with one input can be one product."""
    plain, quantized = _by_kind(modules)
    return not quantized or (not plain and can_join(quantized))


def _fused(modules: Sequence[_Module]) -> tuple[Weight, torch.Tensor | None]:
    plain, quantized = _by_kind(modules)
    biases = [module.bias for module in modules if module.bias is not None]
    weight = join(quantized) if quantized else _stacked(plain)
    return weight, _stacked(biases) if biases else None


def _by_kind(modules: Sequence[_Module]) -> tuple[list[torch.Tensor], list[QuantizedWeight]]:
    weights = [module.weight for module in modules]
    plain = [weight for weight in weights if isinstance(weight, torch.Tensor)]
    return plain, [weight for weight in weights if isinstance(weight, QuantizedWeight)]


def _stacked(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]
