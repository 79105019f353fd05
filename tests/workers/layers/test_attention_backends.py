"""Every backend gives each sequence what plain attention over its own tokens would."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.kernels.attention_reference import attention_reference
from workers.kernels.library import load_library
from workers.kernels.paged_cache import dequantize_heads, quantize_heads
from workers.kernels.rms_norm import head_norm as normalise
from workers.kernels.rotary import rotate
from workers.layers.attention import AttentionMetadata, AttentionShape, HeadNorm
from workers.layers.attention_registry import ATTENTION_BACKENDS, attention_backend
from workers.layers.kv_cache import KVCache
from workers.layers.native_attention import NativeAttention
from workers.layers.rope_scaling import DefaultRope
from workers.layers.rotary import RotaryEmbedding
from workers.layers.sdpa_attention import SdpaAttention
from workers.registry import UnknownChoiceError

SCALE = 0.35
HAS_KERNELS = load_library() is not None
BACKENDS = pytest.mark.parametrize(
    "backend", [name for name in ATTENTION_BACKENDS.names if HAS_KERNELS or name != "native"]
)


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

    def run(self, name: str) -> torch.Tensor:
        """The backend's output, [T, num_heads, head_dim], padding included."""
        setup = self.setup
        shape = AttentionShape(setup.num_heads, setup.num_kv_heads, setup.head_dim)
        backend = ATTENTION_BACKENDS.get(name)(shape)
        cpu = torch.device("cpu")
        plan = backend.prepare(self.metadata, {setup.window, None}, torch.float32, cpu)
        fresh = [raw[row.context :] for raw, row in zip(self.raw, setup.rows, strict=True)]
        positions = [torch.arange(row.context, row.context + row.queries) for row in setup.rows]
        padding = torch.full((setup.padding, *fresh[0].shape[1:]), float("nan"))
        no_positions = torch.zeros(setup.padding, dtype=torch.int64)
        num_rows = self.metadata.query_starts[-1] + setup.padding
        out = torch.full((num_rows, setup.num_heads * setup.head_dim), float("nan"))
        plan.forward(
            torch.cat([*fresh, padding]),
            self.rotary.rotation(torch.cat([*positions, no_positions])),
            self.norm if setup.has_norm else None,
            self.layer,
            window=setup.window,
            scale=SCALE,
            out=out,
        )
        return out.view(num_rows, setup.num_heads, setup.head_dim)

    def expected(self) -> Iterator[torch.Tensor]:
        for sequence, row in enumerate(self.setup.rows):
            query = self.heads[sequence][row.context :, : self.setup.num_heads]
            keys, values = self.keys(sequence), self.values(sequence)
            if self.setup.cache_dtype == torch.int8:
                keys, values = _through_int8(keys), _through_int8(values)
            yield attention_reference(query, keys, values, self.setup.window, SCALE)


def _through_int8(rows: torch.Tensor) -> torch.Tensor:
    return dequantize_heads(*quantize_heads(rows), torch.float32)


@BACKENDS
@settings(deadline=None, max_examples=80)
@given(setup=setups())
def test_each_sequence_as_if_alone(backend: str, setup: Setup) -> None:
    """Whatever the lengths, chunks, windows, head groups, block sizes, norms, types, padding."""
    batch = Batch(setup)
    output = batch.run(backend)
    # A rounding difference before int8 may move an element by a whole step.
    atol = 1e-5 if setup.cache_dtype == torch.float32 else 5e-2
    for sequence, expected in enumerate(batch.expected()):
        rows = slice(*batch.metadata.query_starts[sequence : sequence + 2])
        torch.testing.assert_close(output[rows], expected, atol=atol, rtol=1e-4)


@BACKENDS
@settings(deadline=None, max_examples=20)
@given(setup=setups())
def test_keys_and_values_are_in_the_cache_afterwards(backend: str, setup: Setup) -> None:
    batch = Batch(setup)
    batch.run(backend)
    layer = batch.layer
    for rows_of, store, scales in (
        (batch.keys, layer.keys, layer.key_scales),
        (batch.values, layer.values, layer.value_scales),
    ):
        fresh = torch.cat([rows_of(s)[row.context :] for s, row in enumerate(setup.rows)])
        stored = store.flatten(0, 1)[batch.metadata.slot_mapping].float()
        if scales is not None:
            step = scales.flatten(0, 1)[batch.metadata.slot_mapping][..., None]
            assert ((stored * step - fresh).abs() <= 0.51 * step).all()
        else:
            torch.testing.assert_close(stored, fresh, atol=1e-6, rtol=1e-5)
    assert not any(store[0].any() for store in layer if store is not None)


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
    with pytest.raises(UnknownChoiceError, match=r"'flash'; known: .*reference, sdpa"):
        ATTENTION_BACKENDS.get("flash")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "is_native"),
    [(torch.float32, 64, True), (torch.float16, 64, False), (torch.bfloat16, 1024, False)],
)
def test_auto_is_native_where_the_kernels_can_serve(
    dtype: torch.dtype, head_dim: int, is_native: bool
) -> None:
    shape = AttentionShape(2, 1, head_dim)
    backend = attention_backend("auto", shape, dtype, torch.device("cpu"))
    expected = NativeAttention if is_native and HAS_KERNELS else SdpaAttention
    assert isinstance(backend, expected)


def test_native_where_it_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="attention: got 'native' with"):
        attention_backend("native", AttentionShape(2, 1, 64), torch.float16, torch.device("cpu"))
