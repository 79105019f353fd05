"""AWQ (Lin et al., 2023) as AutoAWQ's "gemm" kernels store it.

Of a module with K inputs and N outputs: qweight int32 [K, N / 8] and qzeros int32 [G, N / 8], eight
outputs in a word in the order 0, 2, 4, 6, 1, 3, 5, 7; scales [G, N].
"""

from dataclasses import dataclass

import torch

from workers.models.checkpoint import Checkpoint
from workers.models.formats.fields import chosen, group_size
from workers.models.formats.format import QuantizedFormat, WeightPart, group_count, group_span
from workers.models.raw_config import RawConfig
from workers.quantization.packed_codes import from_unsigned, unpack
from workers.quantization.quantized_weight import Bits, QuantizedWeight

_BITS: Bits = 4
_PER_WORD = 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word each of its eight outputs stands."""


@dataclass(frozen=True, slots=True)
class Awq:
    """One checkpoint's parameters."""

    group_size: int
    """-1 where each output has one scale."""

    def holds(self, checkpoint: Checkpoint, module: str) -> bool:
        """See QuantizedFormat."""
        return f"{module}.qweight" in checkpoint

    def read(self, checkpoint: Checkpoint, part: WeightPart) -> QuantizedWeight:
        """See QuantizedFormat."""
        outputs, inputs = part.shape
        size = inputs if self.group_size == -1 else self.group_size
        groups, span = group_count(part, size), group_span(part, size)
        rows, words = part.packed_rows(_PER_WORD), -(-outputs // _PER_WORD)
        name = part.module
        codes = checkpoint.read(
            f"{name}.qweight", (inputs, words), torch.int32, (part.columns, rows)
        )
        zeros = checkpoint.read(
            f"{name}.qzeros", (groups, words), torch.int32, (span.columns, rows)
        )
        scales = checkpoint.read(
            f"{name}.scales", (groups, outputs), torch.float32, (span.columns, part.rows)
        )
        return from_unsigned(
            _by_output(codes), span.cut(scales.T), span.cut(_by_output(zeros)), _BITS, span.size
        )


def awq(config: RawConfig) -> QuantizedFormat:
    """From the fields of quantization_config; raises UnsupportedModelError."""
    chosen("bits", config.integer("bits"), (_BITS,))
    chosen("version", config.text("version", "gemm").lower(), ("gemm",))
    chosen("zero_point", config.flag("zero_point", True), (True,))
    return Awq(group_size(config))


def _by_output(words: torch.Tensor) -> torch.Tensor:
    """Words [R, W] to codes [W * 8, R]."""
    codes = unpack(words, _BITS).view(len(words), -1, _PER_WORD)[:, :, _PLACES]
    return codes.flatten(1).T.contiguous()
