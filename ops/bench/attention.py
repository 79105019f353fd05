"""One layer's attention over a paged cache: decoding and prompts, by backend and cache type."""

from time import perf_counter
from typing import Any, NamedTuple

import torch

from ops.bench.hardware import Hardware, measure
from ops.bench.report import Row
from workers.kernels.library import load_library
from workers.layers.attention import AttentionMetadata, AttentionShape
from workers.layers.attention_registry import ATTENTION_BACKENDS
from workers.layers.kv_cache import KVCache, LayerCache
from workers.layers.rope_scaling import DefaultRope
from workers.layers.rotary import RotaryEmbedding

_BLOCK_SIZE = 16
_STORE_BYTES = 256 * 2**20
"""Of all layers' keys and values together: more than any cache of the processor holds."""
_RUN_SECONDS = 0.2
"""After which a run stops before the last layer."""
_SCALE = 0.125


class AttentionWork(NamedTuple):
    """A batch of equal sequences."""

    sequences: int
    context: int
    """Tokens of each that are cached already."""
    queries: int
    """Tokens of each that the step computes."""

    @property
    def length(self) -> int:
        """Tokens of each sequence after the step."""
        return self.context + self.queries

    def __str__(self) -> str:
        if self.queries == 1:
            return f"decode, {self.sequences} x {self.length}"
        return f"prompt, {self.sequences} x ({self.context} + {self.queries})"


WORKS = (
    AttentionWork(1, 4095, 1),
    AttentionWork(8, 4095, 1),
    AttentionWork(64, 319, 1),
    AttentionWork(1, 0, 1024),
    AttentionWork(1, 4096, 256),
)


def bench_attention(shape: AttentionShape, runs: int) -> list[Row]:
    """Milliseconds for one layer with bfloat16 heads of a shape, beside what the machine allows."""
    if (library := load_library()) is not None:
        library.set_num_threads(torch.get_num_threads())
    hardware = measure()
    rows = []
    for work in WORKS:
        for dtype in (torch.bfloat16, torch.int8):
            bench = _Bench(shape, work, dtype)
            for name in ("native", "sdpa"):
                if name == "native" and library is None:
                    continue
                rows.append(
                    Row.over(
                        [bench.run(name) * 1e3 for _ in range(-1, runs)][1:],
                        bench="attention",
                        work=str(work),
                        model="x".join(map(str, shape)),
                        engine=name,
                        metric=f"{dtype} cache".removeprefix("torch."),
                        unit="ms",
                        limit=bench.least_seconds(hardware) * 1e3,
                    )
                )
    return rows


def share_of_limit(row: Row) -> str:
    """How near a row's best comes to its limit."""
    return "" if row.limit is None else f"{row.limit / row.low:.0%}"


class _Bench:
    """One work on several layers in turn, so that each finds its keys and values in memory."""

    def __init__(self, shape: AttentionShape, work: AttentionWork, dtype: torch.dtype) -> None:
        self._shape, self._work = shape, work
        tables = -(-work.length // _BLOCK_SIZE)
        num_blocks = 1 + work.sequences * tables
        size = _CacheShape(1, shape.num_kv_heads, shape.head_dim)
        block_bytes = KVCache.bytes_per_block(size, _BLOCK_SIZE, dtype)
        size = size._replace(num_layers=max(2, -(-_STORE_BYTES // (num_blocks * block_bytes))))
        self._layers = KVCache.allocate(size, num_blocks, _BLOCK_SIZE, dtype, "cpu").layers
        for layer in self._layers:
            _fill(layer)
        self._kv_bytes = work.sequences * work.length * block_bytes / _BLOCK_SIZE
        blocks = (torch.randperm(num_blocks - 1) + 1).view(work.sequences, tables)
        positions = torch.arange(work.context, work.length)
        slots = blocks[:, positions // _BLOCK_SIZE] * _BLOCK_SIZE + positions % _BLOCK_SIZE
        self._metadata = AttentionMetadata(
            list(range(0, work.sequences * work.queries + 1, work.queries)),
            [work.length] * work.sequences,
            blocks.tolist(),
            slots.flatten().contiguous(),
            _BLOCK_SIZE,
        )
        cpu = torch.device("cpu")
        rope = RotaryEmbedding(DefaultRope(1e4), shape.head_dim, work.length, torch.bfloat16, cpu)
        self._rotation = rope.rotation(positions.repeat(work.sequences))
        num_rows = work.sequences * work.queries
        num_all = shape.num_heads + 2 * shape.num_kv_heads
        self._qkv = torch.randn(num_rows, num_all, shape.head_dim).bfloat16()
        self._out = torch.empty(num_rows, shape.num_heads * shape.head_dim, dtype=torch.bfloat16)

    @torch.inference_mode()
    def run(self, name: str) -> float:
        """Seconds that a layer takes, planning left out."""
        backend = ATTENTION_BACKENDS.get(name)(self._shape)
        plan = backend.prepare(self._metadata, {None}, torch.bfloat16, torch.device("cpu"))
        common: dict[str, Any] = {"window": None, "scale": _SCALE, "out": self._out}
        start, num_done = perf_counter(), 0
        while num_done < len(self._layers) and perf_counter() - start < _RUN_SECONDS:
            plan.forward(self._qkv, self._rotation, None, self._layers[num_done], **common)
            num_done += 1
        return (perf_counter() - start) / num_done

    def least_seconds(self, hardware: Hardware) -> float:
        """Bytes over bandwidth, or operations over peak, whichever is more."""
        work = self._work
        visible = work.queries * work.context + work.queries * (work.queries + 1) / 2
        flop = 4 * work.sequences * visible * self._shape.num_heads * self._shape.head_dim
        return max(self._kv_bytes / hardware.read_bytes_per_s, flop / hardware.gemm_flop_per_s)


class _CacheShape(NamedTuple):
    num_layers: int
    num_kv_heads: int
    head_dim: int


def _fill(layer: LayerCache) -> None:
    for store in (layer.keys, layer.values):
        store.fill_(1)
    for scales in (layer.key_scales, layer.value_scales):
        if scales is not None:
            scales.fill_(1 / 64)
