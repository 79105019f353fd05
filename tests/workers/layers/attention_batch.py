"""Random batches for tests of attention over a paged cache, and what attention makes of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from hypothesis import strategies as st

from workers.kernels.attention_reference import attention_reference
from workers.kernels.paged_cache import dequantize_heads, quantize_heads
from workers.kernels.rms_norm import head_norm as normalise
from workers.kernels.rotary import rotate
from workers.layers.attention import (
    AttentionBackend,
    AttentionMetadata,
    AttentionShape,
    HeadNorm,
)
from workers.layers.kv_cache import KVCache, LayerCache
from workers.layers.rope_scaling import DefaultRope
from workers.layers.rotary import RotaryEmbedding

SCALE = 0.35


class Row(NamedTuple):
    """One sequence of a batch."""

    context: int
    queries: int


@dataclass(frozen=True)
class Setup:
    """A batch and the model's attention shape."""

    rows: list[Row]
    num_heads: int
    num_kv_heads: int
    block_size: int
    window: int | None
    padding: int
    head_dim: int = 8
    num_layers: int = 1
    has_norm: bool = True
    cache_dtype: torch.dtype = torch.float32

    @property
    def shape(self) -> AttentionShape:
        return AttentionShape(self.num_heads, self.num_kv_heads, self.head_dim)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    rows = st.builds(Row, st.integers(0, 70), st.sampled_from([1, 1, 1, 2, 5, 16, 33]))
    num_kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 1), (1, 7)]))
    return Setup(
        rows=draw(st.lists(rows, min_size=1, max_size=6)),
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        block_size=draw(st.sampled_from([1, 4, 16])),
        window=draw(st.none() | st.integers(1, 60)),
        padding=draw(st.integers(0, 3)),
        head_dim=draw(st.sampled_from([8, 10, 48])),
        has_norm=draw(st.booleans()),
        cache_dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.int8])),
    )


class Batch:
    """Random tokens of a setup, of which all but the queries are in the cache already.

    Blocks wholly before the window are the null block, and what the cache holds past a
    sequence's end is large, so that reading it would show.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        size = setup.block_size
        lengths = [row.context + row.queries for row in setup.rows]
        num_blocks = 1 + sum(-(-length // size) for length in lengths)
        free = iter((torch.randperm(num_blocks - 1) + 1).tolist())
        tables = [[next(free) for _ in range(-(-length // size))] for length in lengths]
        self.layer = KVCache.allocate(setup, num_blocks, size, setup.cache_dtype, "cpu").layers[0]
        for store in self.layer:
            if store is not None:
                store[1:] = 100
        num_rotated = setup.num_heads + setup.num_kv_heads
        self.norm = HeadNorm(torch.rand(num_rotated, setup.head_dim) + 0.5, 1e-6)
        rope = DefaultRope(theta=100.0)
        cpu = torch.device("cpu")
        self.rotary = RotaryEmbedding(rope, setup.head_dim, 8192, torch.float32, cpu)
        num_all = num_rotated + setup.num_kv_heads
        self.raw = [torch.randn(length, num_all, setup.head_dim) for length in lengths]
        self.heads = [self._rotated(raw) for raw in self.raw]
        slots = [
            torch.tensor(table)[torch.arange(length) // size] * size + torch.arange(length) % size
            for table, length in zip(tables, lengths, strict=True)
        ]
        self._fill(slots)
        starts = torch.tensor([0] + [row.queries for row in setup.rows]).cumsum(0)
        new = [slot[row.context :] for slot, row in zip(slots, setup.rows, strict=True)]
        for table, row in zip(tables, setup.rows, strict=True):
            if setup.window is not None:
                hidden = max(row.context - setup.window + 1, 0) // size
                table[:hidden] = [0] * hidden
        self.metadata = AttentionMetadata(starts.tolist(), lengths, tables, torch.cat(new), size)

    def _rotated(self, raw: torch.Tensor) -> torch.Tensor:
        """All heads of a sequence as attention sees them, but for the cache's rounding."""
        split = self.setup.num_heads + self.setup.num_kv_heads
        rotated = raw[:, :split]
        if self.setup.has_norm:
            rotated = normalise(rotated, *self.norm)
        rotation = self.rotary.rotation(torch.arange(len(raw)))
        cos, sin = rotation.table[rotation.positions][:, None].chunk(2, dim=-1)
        return torch.cat((rotate(rotated, cos, sin), raw[:, split:]), dim=1)

    def keys(self, sequence: int) -> torch.Tensor:
        """[length, num_kv_heads, head_dim]"""
        first = self.setup.num_heads
        return self.heads[sequence][:, first : first + self.setup.num_kv_heads]

    def values(self, sequence: int) -> torch.Tensor:
        return self.heads[sequence][:, -self.setup.num_kv_heads :]

    def _fill(self, slots: list[torch.Tensor]) -> None:
        layer = self.layer
        for sequence, row in enumerate(self.setup.rows):
            old = slots[sequence][: row.context]
            for rows, store, scales in (
                (self.keys(sequence), layer.keys, layer.key_scales),
                (self.values(sequence), layer.values, layer.value_scales),
            ):
                cached = rows[: row.context]
                if scales is not None:
                    cached, scales.flatten(0, 1)[old] = quantize_heads(cached)
                store.flatten(0, 1)[old] = cached

    def run(self, backend: AttentionBackend) -> torch.Tensor:
        """The backend's output, [T, num_heads, head_dim], padding included."""
        num_rows = self.metadata.query_starts[-1] + self.setup.padding
        return self.run_rows(backend, self.layer, slice(0, num_rows), num_rows)

    def run_rows(
        self, backend: AttentionBackend, layer: LayerCache, rows: slice, num_rows: int
    ) -> torch.Tensor:
        """The output for some rows of the batch, padded to `num_rows`, with another cache."""
        setup = self.setup
        cpu = torch.device("cpu")
        plan = backend.prepare(self.metadata, {setup.window, None}, torch.float32, cpu)
        fresh = [raw[row.context :] for raw, row in zip(self.raw, setup.rows, strict=True)]
        positions = [torch.arange(row.context, row.context + row.queries) for row in setup.rows]
        num_padding = num_rows - self.metadata.query_starts[-1]
        padding = torch.full((num_padding, *fresh[0].shape[1:]), float("nan"))
        positions.append(torch.zeros(num_padding, dtype=torch.int64))
        qkv = torch.cat([*fresh, padding])[rows].clone()
        out = torch.full((len(qkv), setup.num_heads * setup.head_dim), float("nan"))
        plan.forward(
            qkv,
            self.rotary.rotation(torch.cat(positions)[rows]),
            self.norm if setup.has_norm else None,
            layer,
            window=setup.window,
            scale=SCALE,
            out=out,
        )
        return out.view(-1, setup.num_heads, setup.head_dim)

    def expected(self) -> Iterator[torch.Tensor]:
        for sequence, row in enumerate(self.setup.rows):
            query = self.heads[sequence][row.context :, : self.setup.num_heads]
            keys, values = self.keys(sequence), self.values(sequence)
            if self.setup.cache_dtype == torch.int8:
                keys, values = _through_int8(keys), _through_int8(values)
            yield attention_reference(query, keys, values, self.setup.window, SCALE)


def _through_int8(rows: torch.Tensor) -> torch.Tensor:
    return dequantize_heads(*quantize_heads(rows), torch.float32)
