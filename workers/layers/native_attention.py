"""The attention backend on the CPU kernels."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from workers.kernels.cpu_attention import CpuAttention
from workers.kernels.cpu_batch import CpuBatch
from workers.kernels.library import Library, load_library
from workers.layers.attention import AttentionMetadata, AttentionPlan, AttentionShape, HeadNorm
from workers.layers.kv_cache import LayerCache
from workers.layers.rotary import Rotation


class NativeAttention:
    """Reads keys and values where they lie.

    All plans share one batch in memory that does not move: a recorded `forward` can be played with
    whatever batch was prepared last, as long as it is padded to the same number of rows.
    """

    is_native = True

    def __init__(self, shape: AttentionShape, *, row_by_row: bool = False) -> None:
        """With `row_by_row`, a query's result is the same alone and among others of its sequence.

        Raises ValueError where the kernels cannot be had, or not for heads of this size.
        """
        self._kernels = CpuAttention(attention_library(), *shape, row_by_row=row_by_row)
        self._batch = CpuBatch()

    def prepare(
        self,
        metadata: AttentionMetadata,
        windows: Collection[int | None],
        dtype: torch.dtype,
        device: torch.device,
    ) -> AttentionPlan:
        """See AttentionBackend."""
        self._batch.set(
            metadata.slot_mapping,
            metadata.query_starts,
            metadata.context_lens,
            metadata.block_tables,
        )
        return NativePlan(self._kernels, self._batch)


@dataclass(frozen=True, slots=True)
class NativePlan:
    """The kernels work out the rest themselves."""

    kernels: CpuAttention
    batch: CpuBatch

    def forward(
        self,
        qkv: torch.Tensor,
        rotation: Rotation,
        head_norm: HeadNorm | None,
        cache: LayerCache,
        *,
        window: int | None,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        """See AttentionPlan."""
        weights, eps = (None, 0.0) if head_norm is None else head_norm
        positions, table = rotation
        keys, values, *scales = cache
        self.kernels.write_heads(
            self.batch, qkv, positions, table, weights, eps, keys, values, *scales
        )
        self.kernels.attend(
            self.batch, qkv, keys, values, *scales, window=window, scale=scale, out=out
        )


def attention_library() -> Library:
    """The kernels. Raises ValueError where they cannot be had."""
    library = load_library()
    if library is None:
        raise ValueError(
            "attention: got 'native', which needs AVX2, FMA and a C++ compiler; "
            "expected 'sdpa' here"
        )
    return library
