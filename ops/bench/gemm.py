"""Products with weights: by shape, arithmetic and rows, beside what memory and FMA allow."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ops.bench.hardware import fma_peak, measure
from ops.bench.report import Row
from workers.kernels.cpu_gemm import (
    ARITHMETICS,
    Arithmetic,
    CpuGemm,
    PackedSpec,
    PackedWeight,
    cpu_gemm,
)
from workers.kernels.library import Library, load_library
from workers.layers.linear import onednn_packs

ROWS = ("1", "4", "8", "16", "32", "64", "256", "1024")
SHAPES = ("768x1280", "768x4608", "2304x768", "1024x4096", "3072x1024")
"""Inputs x outputs."""

_GROUP_SIZE = 64
_COLD_BYTES = 96 * 2**20
"""Copies of a weight that take turns, together: more than any cache of the processor holds."""
_RUN_S = 0.05


class GemmWork(NamedTuple):
    """One product."""

    arithmetic: Arithmetic
    inputs: int
    outputs: int
    rows: int

    @property
    def x_dtype(self) -> torch.dtype:
        """Of activations and results."""
        return torch.float32 if self.arithmetic == "float32" else torch.bfloat16

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inputs * self.outputs


class _Limits(NamedTuple):
    read_bytes_per_s: float
    flops_per_s: float


class _Engine(NamedTuple):
    name: str
    multiply: Callable[[int], object]
    """With copy i of the weight, which has `nbytes`."""
    nbytes: int
    copies: int


def bench_gemm(
    shapes: Sequence[str], arithmetics: Sequence[str], rows: Sequence[str], runs: int
) -> list[Row]:
    """Weights read and operations done in a second, ours and torch's in turn within each run.

    The limits are the bandwidth of reading and the rate of float32 FMA, both measured; integer
    arithmetic may exceed the latter. Weights come from memory, as in a model: copies take turns.

    Raises ValueError if a shape, arithmetic or number of rows is not one, or there are no kernels.
    """
    library = load_library()
    if library is None:
        raise ValueError("kernels: got none, expected a C++ compiler and a processor with AVX2")
    library.set_num_threads(torch.get_num_threads())
    works = [
        GemmWork(_arithmetic(arithmetic), *_shape(shape), _positive("rows", count))
        for shape in shapes
        for arithmetic in arithmetics
        for count in rows
    ]
    limits = _Limits(measure().read_bytes_per_s, fma_peak(library))
    with torch.inference_mode():
        return [row for work in works for row in _bench(library, work, limits, runs)]


def share(row: Row) -> str:
    """How much of its limit a row reaches, in percent."""
    return f"{100 * _share(row):.0f} %"


def nearest_to_limit(rows: Sequence[Row]) -> list[Row]:
    """Of each product's two rows the one for what holds it up."""
    return [max(pair, key=_share) for pair in zip(rows[::2], rows[1::2], strict=True)]


def _share(row: Row) -> float:
    assert row.limit is not None
    return row.median / row.limit


def _bench(library: Library, work: GemmWork, limits: _Limits, runs: int) -> list[Row]:
    engines = [_ours(cpu_gemm(library), work), *_torchs(work)]
    seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for engine in engines:
        engine.multiply(0)
    for _ in range(runs):
        for engine in engines:
            seconds[engine.name].append(_seconds(engine))
    rows = []
    for engine in engines:
        for metric, unit, amount, limit in (
            ("reading", "GB/s", engine.nbytes, limits.read_bytes_per_s),
            ("computing", "GFLOP/s", work.flops, limits.flops_per_s),
        ):
            rows.append(
                Row.over(
                    [amount / each / 1e9 for each in seconds[engine.name]],
                    bench="gemm",
                    work=f"{work.rows}x{work.inputs}x{work.outputs}",
                    model=work.arithmetic,
                    engine=engine.name,
                    metric=metric,
                    unit=unit,
                    limit=limit / 1e9,
                )
            )
    return rows


def _seconds(engine: _Engine) -> float:
    """Of one product, on average over a run."""
    count, start = 0, perf_counter()
    while (spent := perf_counter() - start) < _RUN_S or count == 0:
        engine.multiply(count % engine.copies)
        count += 1
    return spent / count


def _ours(gemm: CpuGemm, work: GemmWork) -> _Engine:
    weight = _random_weight(gemm, work)
    copies = [
        PackedWeight(weight.spec, {name: each.clone() for name, each in weight.tensors.items()})
        for _ in range(_num_copies(weight.nbytes))
    ]
    x = torch.randn(work.rows, work.inputs).to(work.x_dtype)
    out = torch.empty(work.rows, work.outputs, dtype=work.x_dtype)
    return _Engine(
        "trunkline",
        lambda copy: gemm.multiply(x, copies[copy], out),
        weight.nbytes,
        len(copies),
    )


def _random_weight(gemm: CpuGemm, work: GemmWork) -> PackedWeight:
    shape = (work.outputs, work.inputs)
    group_size = _GROUP_SIZE if work.arithmetic.startswith("int4") else 0
    spec = PackedSpec(work.arithmetic, work.inputs, work.outputs, group_size=group_size)
    if not work.arithmetic.startswith("int"):
        return gemm.pack(spec, torch.randn(shape).to(work.x_dtype))
    low, high, dtype = (0, 16, torch.uint8) if group_size else (-127, 128, torch.int8)
    codes = torch.randint(low, high, shape, dtype=dtype)
    return gemm.pack(spec, codes, scales=torch.rand(work.outputs, spec.num_groups))


def _torchs(work: GemmWork) -> list[_Engine]:
    """torch's product of floating-point weights, by oneDNN where that takes the dtype."""
    if work.arithmetic.startswith("int"):
        return []
    weight = torch.randn(work.outputs, work.inputs).to(work.x_dtype)
    x = torch.randn(work.rows, work.inputs).to(work.x_dtype)
    plain = [weight.clone() for _ in range(_num_copies(weight.nbytes))]
    if not onednn_packs(work.x_dtype):
        return [_Engine("torch", lambda copy: F.linear(x, plain[copy]), weight.nbytes, len(plain))]
    packed = [torch.ops.mkldnn._reorder_linear_weight(each, work.rows) for each in plain]
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return [
        _Engine(
            "torch (oneDNN)",
            lambda copy: multiply(x, packed[copy], None, "none", [], ""),
            weight.nbytes,
            len(packed),
        )
    ]


def _num_copies(nbytes: int) -> int:
    return _COLD_BYTES // nbytes + 1


def _shape(text: str) -> tuple[int, int]:
    inputs, _, outputs = text.partition("x")
    return _positive("inputs", inputs), _positive("outputs", outputs)


def _positive(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{name}: got {text!r}, expected a positive number")
    return int(text)


def _arithmetic(name: str) -> Arithmetic:
    for arithmetic in ARITHMETICS:
        if arithmetic == name:
            return arithmetic
    raise ValueError(f"arithmetics: got {name!r}, expected some of {', '.join(ARITHMETICS)}")
