"""Every backend gives each sequence what plain attention over its own tokens would."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.kernels.attention_reference import attention_reference
from workers.layers.attention import AttentionMetadata, AttentionShape
from workers.layers.attention_registry import ATTENTION_BACKENDS
from workers.registry import UnknownChoiceError

HEAD_DIM = 8
SCALE = 0.35
BACKENDS = pytest.mark.parametrize("backend", ATTENTION_BACKENDS.names)


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


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    rows = st.builds(Row, st.integers(0, 70), st.sampled_from([1, 1, 1, 2, 5, 16, 33]))
    num_kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 3), (3, 1)]))
    return Setup(
        rows=draw(st.lists(rows, min_size=1, max_size=6)),
        num_heads=num_kv_heads * group,
        num_kv_heads=num_kv_heads,
        block_size=draw(st.sampled_from([1, 4, 16])),
        window=draw(st.none() | st.integers(1, 60)),
        padding=draw(st.integers(0, 3)),
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
        shape = (num_blocks, size, setup.num_kv_heads, HEAD_DIM)
        self.key_cache, self.value_cache = torch.full((2, *shape), 1e4).unbind()
        self.key_cache[0] = self.value_cache[0] = 0
        heads = (setup.num_kv_heads, HEAD_DIM)
        self.keys = [torch.randn(length, *heads) for length in lengths]
        self.values = [torch.randn(length, *heads) for length in lengths]
        self.queries = [torch.randn(row.queries, setup.num_heads, HEAD_DIM) for row in setup.rows]
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

    def _fill(self, slots: list[torch.Tensor]) -> None:
        for sequence, row in enumerate(self.setup.rows):
            old = slots[sequence][: row.context]
            self.key_cache.flatten(0, 1)[old] = self.keys[sequence][: row.context]
            self.value_cache.flatten(0, 1)[old] = self.values[sequence][: row.context]

    def run(self, name: str) -> torch.Tensor:
        """The backend's output, [T, num_heads, HEAD_DIM], padding included."""
        setup = self.setup
        shape = AttentionShape(setup.num_heads, setup.num_kv_heads, HEAD_DIM)
        windows = {setup.window, None}
        backend = ATTENTION_BACKENDS.get(name)(shape)
        plan = backend.prepare(self.metadata, windows, torch.float32, torch.device("cpu"))
        return plan.forward(
            self._flat(self.queries),
            self._flat([k[r.context :] for k, r in zip(self.keys, setup.rows, strict=True)]),
            self._flat([v[r.context :] for v, r in zip(self.values, setup.rows, strict=True)]),
            self.key_cache,
            self.value_cache,
            window=setup.window,
            scale=SCALE,
        )

    def _flat(self, parts: list[torch.Tensor]) -> torch.Tensor:
        padding = torch.full((self.setup.padding, *parts[0].shape[1:]), float("nan"))
        return torch.cat([*parts, padding])

    def expected(self) -> Iterator[torch.Tensor]:
        for query, keys, values in zip(self.queries, self.keys, self.values, strict=True):
            yield attention_reference(query, keys, values, self.setup.window, SCALE)


@BACKENDS
@settings(deadline=None, max_examples=80)
@given(setup=setups())
def test_each_sequence_as_if_alone(backend: str, setup: Setup) -> None:
    """Whatever the lengths, chunks, windows, head groups, block sizes and padding."""
    batch = Batch(setup)
    output = batch.run(backend)
    for sequence, expected in enumerate(batch.expected()):
        rows = slice(*batch.metadata.query_starts[sequence : sequence + 2])
        torch.testing.assert_close(output[rows], expected, atol=1e-5, rtol=1e-4)


@BACKENDS
@settings(deadline=None, max_examples=20)
@given(setup=setups())
def test_keys_and_values_are_in_the_cache_afterwards(backend: str, setup: Setup) -> None:
    batch = Batch(setup)
    batch.run(backend)
    fresh = [keys[row.context :] for keys, row in zip(batch.keys, setup.rows, strict=True)]
    stored = batch.key_cache.flatten(0, 1)[batch.metadata.slot_mapping]
    assert torch.equal(stored, torch.cat(fresh))
    assert not batch.key_cache[0].any()
    assert not batch.value_cache[0].any()


@BACKENDS
def test_padding_rows_are_zero(backend: str) -> None:
    """Even when what stands in them is not a number."""
    batch = Batch(Setup([Row(3, 1), Row(0, 5)], 2, 1, 4, None, padding=2))
    output = batch.run(backend)
    assert output.isfinite().all()
    assert not output[-2:].any()


@BACKENDS
def test_groups_of_many_lengths(backend: str) -> None:
    """More decoding sequences than one group takes."""
    rows = [Row(length, 1) for length in range(0, 4000, 57)]
    batch = Batch(Setup(rows, 4, 4, 16, None, padding=0))
    output = batch.run(backend)
    expected = torch.cat(list(batch.expected()))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownChoiceError, match=r"'flash'; known: reference, sdpa"):
        ATTENTION_BACKENDS.get("flash")
