"""Random steps for tests of the attention kernels."""

from typing import NamedTuple

import torch
from hypothesis import strategies as st

from workers.kernels.attention_reference import attention_reference
from workers.kernels.cpu_attention import CpuAttention
from workers.kernels.cpu_batch import CpuBatch
from workers.kernels.library import Library
from workers.kernels.paged_cache import dequantize_heads, quantize_heads

BLOCK = 16
SCALE = 0.2


class Shape(NamedTuple):
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Sequence(NamedTuple):
    context: int
    queries: int

    @property
    def length(self) -> int:
        return self.context + self.queries


class Cache(NamedTuple):
    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None

    def rows(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values at slots, float32 [N, num_kv_heads, head_dim]."""
        found = []
        for store, scales in ((self.keys, self.key_scales), (self.values, self.value_scales)):
            rows = store.flatten(0, 1)[slots]
            if scales is not None:
                rows = dequantize_heads(rows, scales.flatten(0, 1)[slots], torch.float32)
            found.append(rows.float())
        return found[0], found[1]


class Step(NamedTuple):
    """A batch with its cache full of random tokens."""

    shape: Shape
    sequences: list[Sequence]
    tables: list[list[int]]
    cache: Cache
    qkv: torch.Tensor

    @classmethod
    def random(
        cls,
        shape: Shape,
        sequences: list[Sequence],
        dtype: torch.dtype = torch.float32,
        cache_dtype: torch.dtype | None = None,
        padding: int = 0,
    ) -> "Step":
        counts = [-(-sequence.length // BLOCK) for sequence in sequences]
        blocks = iter((torch.randperm(sum(counts)) + 1).tolist())
        tables = [[next(blocks) for _ in range(count)] for count in counts]
        num_blocks = 1 + sum(counts)
        stores = torch.randn(2, num_blocks, BLOCK, *shape[1:]).to(dtype)
        if cache_dtype == torch.int8:
            (keys, key_scales), (values, value_scales) = map(quantize_heads, stores)
            cache = Cache(keys, values, key_scales, value_scales)
        else:
            cache = Cache(stores[0].clone(), stores[1].clone(), None, None)
        num_rows = sum(sequence.queries for sequence in sequences) + padding
        qkv = torch.randn(num_rows, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim)
        return cls(shape, sequences, tables, cache, qkv.to(dtype))

    def slots(self, index: int) -> torch.Tensor:
        positions = torch.arange(self.sequences[index].length)
        return torch.tensor(self.tables[index])[positions // BLOCK] * BLOCK + positions % BLOCK

    def batch(self) -> CpuBatch:
        starts = [0]
        for sequence in self.sequences:
            starts.append(starts[-1] + sequence.queries)
        fresh = [self.slots(i)[sequence.context :] for i, sequence in enumerate(self.sequences)]
        batch = CpuBatch()
        lengths = [sequence.length for sequence in self.sequences]
        batch.set(torch.cat(fresh), starts, lengths, self.tables)
        return batch

    def attend(self, library: Library, window: int | None = None) -> torch.Tensor:
        out = torch.full((len(self.qkv), self.shape.num_heads * self.shape.head_dim), float("nan"))
        out = out.to(self.qkv.dtype)
        CpuAttention(library, *self.shape).attend(
            self.batch(), self.qkv, *self.cache, window=window, scale=SCALE, out=out
        )
        return out

    def expected(self, window: int | None = None) -> torch.Tensor:
        """Of the rows that are not padding, float32."""
        parts, first = [], 0
        for index, sequence in enumerate(self.sequences):
            query = self.qkv[first : first + sequence.queries, : self.shape.num_heads].float()
            first += sequence.queries
            keys, values = self.cache.rows(self.slots(index))
            parts.append(attention_reference(query, keys, values, window, SCALE).flatten(1))
        return torch.cat(parts)


HEADS = st.sampled_from([(1, 1), (2, 2), (4, 1), (3, 1), (6, 2), (5, 1), (8, 1), (7, 1)])
DIMS = st.sampled_from([2, 8, 20, 32, 64, 80])
SEQUENCES = st.lists(
    st.builds(Sequence, st.integers(0, 300), st.sampled_from([1, 1, 2, 7, 40])),
    min_size=1,
    max_size=4,
)
TYPES = st.sampled_from(
    [
        (torch.float32, None),
        (torch.float32, torch.int8),
        (torch.bfloat16, None),
        (torch.bfloat16, torch.int8),
    ]
)
