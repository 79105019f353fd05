"""GPTQ (Frantar et al., 2022) as AutoGPTQ and GPTQModel store it.

Of a module with K inputs and N outputs: qweight int32 [K / c, N], c = 32 / bits inputs in a word;
qzeros int32 [G, N / c], c outputs in a word; scales [G, N]; g_idx int32 [K], each input's group.
The first version of the format stores zeros less one.
"""

from dataclasses import dataclass

import torch

from workers.models.checkpoint import Checkpoint
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
from workers.quantization.quantized_weight import Bits, QuantizedWeight

_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}


@dataclass(frozen=True, slots=True)
class Gptq:
    """One checkpoint's parameters."""

    bits: Bits
    group_size: int
    """-1 where each output has one scale."""
    zero_offset: int
    """What stored zeros lack."""

    def holds(self, checkpoint: Checkpoint, module: str) -> bool:
        """See QuantizedFormat."""
        return f"{module}.qweight" in checkpoint

    def read(self, checkpoint: Checkpoint, part: WeightPart) -> QuantizedWeight:
        """See QuantizedFormat."""
        outputs, inputs = part.shape
        size = inputs if self.group_size == -1 else self.group_size
        groups, per_word = group_count(part, size), WORD_BITS // self.bits
        order = self._input_order(checkpoint, part, size)
        span = group_span(part, size)
        words = checkpoint.read(
            f"{part.module}.qweight",
            (inputs // per_word, outputs),
            torch.int32,
            (part.packed_columns(per_word), part.rows),
        )
        zeros = checkpoint.read(
            f"{part.module}.qzeros",
            (groups, outputs // per_word),
            torch.int32,
            (span.columns, part.packed_rows(per_word)),
        )
        scales = checkpoint.read(
            f"{part.module}.scales", (groups, outputs), torch.float32, (span.columns, part.rows)
        )
        codes = unpack(words.T, self.bits)
        return from_unsigned(
            codes if order is None else codes[:, order],
            span.cut(scales.T),
            span.cut(self._true_zeros(unpack(zeros, self.bits)).T),
            self.bits,
            span.size,
            input_order=order,
        )

    def _true_zeros(self, stored: torch.Tensor) -> torch.Tensor:
        return (stored + self.zero_offset) & ((1 << self.bits) - 1)

    def _input_order(
        self, checkpoint: Checkpoint, part: WeightPart, size: int
    ) -> torch.Tensor | None:
        name = f"{part.module}.g_idx"
        if name not in checkpoint:
            return None
        return input_order(checkpoint.read(name, part.shape[1:], torch.int64), part, size)


def gptq(config: RawConfig) -> QuantizedFormat:
    """From the fields of quantization_config; raises UnsupportedModelError."""
    refuse_present(config, "dynamic")
    checkpoint_format = config.text("checkpoint_format", "gptq")
    bits: tuple[Bits, ...] = (4, 8)
    return Gptq(
        bits=chosen("bits", config.integer("bits"), bits),
        group_size=group_size(config),
        zero_offset=_ZERO_OFFSETS[
            chosen("checkpoint_format", checkpoint_format, tuple(_ZERO_OFFSETS))
        ],
    )
