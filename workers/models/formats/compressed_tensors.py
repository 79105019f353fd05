"""compressed-tensors, the format of LLM Compressor: "pack-quantized" and "int-quantized".

Of a module with K inputs and N outputs, packed: weight_packed int32 [N, ceil(K / c)], c = 32 / bits
inputs in a word; weight_zero_point int32 [ceil(N / c), G]; weight_g_idx int32 [K]; weight_shape.
As integers: weight int8 [N, K] and weight_zero_point int8 [N, G]. Both: weight_scale [N, G].
Packed codes count from 0, integers from the middle.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from workers.models.checkpoint import Checkpoint
from workers.models.errors import UnsupportedModelError
from workers.models.formats.fields import chosen, group_size, refuse_present
from workers.models.formats.format import (
    QuantizedFormat,
    WeightPart,
    group_count,
    group_span,
    input_order,
)
from workers.models.raw_config import RawConfig
from workers.quantization.packed_codes import WORD_BITS, from_unsigned, unpack
from workers.quantization.quantized_weight import Activations, Bits, QuantizedWeight

_PACKED, _INTEGERS = "pack-quantized", "int-quantized"
_LINEAR_CLASS = "Linear"


@dataclass(frozen=True, slots=True)
class WeightGroup:
    """How the modules of one config group are stored."""

    targets: tuple[str, ...]
    layout: str
    bits: Bits
    group_size: int
    """-1 where each output has one scale."""
    symmetric: bool
    activations: Activations

    def read(self, checkpoint: Checkpoint, part: WeightPart) -> QuantizedWeight:
        """See QuantizedFormat."""
        outputs, inputs = part.shape
        size = inputs if self.group_size == -1 else self.group_size
        groups = group_count(part, size)
        order = self._input_order(checkpoint, part, size)
        span = group_span(part, size)
        scales = checkpoint.read(
            f"{part.module}.weight_scale",
            (outputs, groups),
            torch.float32,
            (part.rows, span.columns),
        )
        packed = self.layout == _PACKED
        codes = (self._packed_codes if packed else self._integer_codes)(checkpoint, part)
        zeros = None
        if not self.symmetric:
            read_zeros = self._packed_zeros if packed else self._integer_zeros
            zeros = span.cut(read_zeros(checkpoint, part, groups, span.columns))
        return from_unsigned(
            codes if order is None else codes[:, order],
            span.cut(scales),
            zeros,
            self.bits,
            span.size,
            self.activations,
            order,
        )

    def _packed_codes(self, checkpoint: Checkpoint, part: WeightPart) -> torch.Tensor:
        checkpoint.read(f"{part.module}.weight_shape", (2,), torch.int64)
        outputs, inputs = part.shape
        per_word = WORD_BITS // self.bits
        words = checkpoint.read(
            f"{part.module}.weight_packed",
            (outputs, -(-inputs // per_word)),
            torch.int32,
            (part.rows, part.packed_columns(per_word)),
        )
        return unpack(words, self.bits)[:, : part.columns.stop - part.columns.start]

    def _packed_zeros(
        self, checkpoint: Checkpoint, part: WeightPart, groups: int, span: slice
    ) -> torch.Tensor:
        per_word = WORD_BITS // self.bits
        words = checkpoint.read(
            f"{part.module}.weight_zero_point",
            (-(-part.shape[0] // per_word), groups),
            torch.int32,
            (part.packed_rows(per_word), span),
        )
        return unpack(words.T, self.bits)[:, : part.rows.stop - part.rows.start].T.contiguous()

    def _integer_codes(self, checkpoint: Checkpoint, part: WeightPart) -> torch.Tensor:
        spans = (part.rows, part.columns)
        return _unsigned(checkpoint.read(f"{part.module}.weight", part.shape, torch.int8, spans))

    def _integer_zeros(
        self, checkpoint: Checkpoint, part: WeightPart, groups: int, span: slice
    ) -> torch.Tensor:
        name, shape = f"{part.module}.weight_zero_point", (part.shape[0], groups)
        return _unsigned(checkpoint.read(name, shape, torch.int8, (part.rows, span)))

    def _input_order(
        self, checkpoint: Checkpoint, part: WeightPart, size: int
    ) -> torch.Tensor | None:
        name = f"{part.module}.weight_g_idx"
        if name not in checkpoint:
            return None
        return input_order(checkpoint.read(name, part.shape[1:], torch.int64), part, size)


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """One checkpoint's config groups."""

    groups: tuple[WeightGroup, ...]
    ignore: tuple[str, ...]
    """Names, or regular expressions after "re:", of modules that are stored plainly."""

    def holds(self, checkpoint: Checkpoint, module: str) -> bool:
        """See QuantizedFormat."""
        return self._group(module) is not None

    def read(self, checkpoint: Checkpoint, part: WeightPart) -> QuantizedWeight:
        """See QuantizedFormat."""
        group = self._group(part.module)
        assert group is not None, f"{part.module} is not quantized"
        return group.read(checkpoint, part)

    def _group(self, module: str) -> WeightGroup | None:
        if _matches(module, self.ignore):
            return None
        named = (group for group in self.groups if _matches(module, group.targets))
        rest = (group for group in self.groups if _LINEAR_CLASS in group.targets)
        return next(named, None) or next(rest, None)


def compressed_tensors(config: RawConfig) -> QuantizedFormat:
    """From the fields of quantization_config; raises UnsupportedModelError."""
    refuse_present(config, "kv_cache_scheme", "transform_config")
    sparsity = config.section("sparsity_config")
    if sparsity is not None:
        chosen("sparsity_config.format", sparsity.text("format"), ("dense",))
    chosen("quantization_status", config.text("quantization_status", "compressed"), ("compressed",))
    layout = config.text("format", "")
    groups = config.section("config_groups") or RawConfig({})
    return CompressedTensors(
        tuple(_group_of(groups.section(name) or RawConfig({}), layout) for name in groups),
        tuple(config.texts("ignore")),
    )


def _group_of(fields: RawConfig, layout: str) -> WeightGroup:
    refuse_present(fields, "output_activations")
    layout = chosen("format", fields.text("format", layout), (_PACKED, _INTEGERS))
    weights = fields.section("weights") or RawConfig({})
    chosen("weights.type", weights.text("type", "int"), ("int",))
    bits: tuple[Bits, ...] = (4, 8) if layout == _PACKED else (8,)
    strategy = chosen("weights.strategy", weights.text("strategy"), ("group", "channel"))
    return WeightGroup(
        targets=tuple(fields.texts("targets")),
        layout=layout,
        bits=chosen("weights.num_bits", weights.integer("num_bits"), bits),
        group_size=group_size(weights) if strategy == "group" else -1,
        symmetric=weights.flag("symmetric", True),
        activations=_activations(fields.section("input_activations")),
    )


def _activations(fields: RawConfig | None) -> Activations:
    if fields is None:
        return "none"
    name = "input_activations"
    chosen(f"{name}.type", fields.text("type", "int"), ("int",))
    chosen(f"{name}.num_bits", fields.integer("num_bits"), (8,))
    chosen(f"{name}.dynamic", fields.flag("dynamic", False), (True,))
    chosen(f"{name}.strategy", fields.text("strategy"), ("token",))
    chosen(f"{name}.symmetric", fields.flag("symmetric", True), (True,))
    return "int8"


def _matches(module: str, targets: Iterable[str]) -> bool:
    """As compressed-tensors compares names; expressions match from a name's beginning."""
    for target in targets:
        if not target.startswith("re:"):
            if target == module:
                return True
        elif _expression(target).match(module):
            return True
    return False


def _expression(target: str) -> re.Pattern[str]:
    try:
        return re.compile(target.removeprefix("re:"))
    except re.error as error:
        raise UnsupportedModelError(
            f"quantization_config: got target {target!r}, expected a regular expression: {error}"
        ) from error


def _unsigned(codes: torch.Tensor) -> torch.Tensor:
    """int8 codes plus 128, as uint8."""
    return codes.view(torch.uint8) ^ 128
