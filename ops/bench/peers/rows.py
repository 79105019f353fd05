"""What a comparison amounts to: figures, our ratio to the best peer, and spoiled samples."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ops.bench.hardware import Hardware
from ops.bench.limits import sizes
from ops.bench.peers.engine_spec import EngineSpec
from ops.bench.peers.samples import Sample
from ops.bench.peers.turns import RSS, START, Comparison
from ops.bench.peers.works import WORKS, Work
from ops.bench.report import Row

BENCH = "peers"


class _Figure(NamedTuple):
    description: str
    metric: str
    unit: str
    more_is_better: bool
    limit: Callable[[EngineSpec], float | None]


def hardware_rows(hardware: Hardware, threads: int) -> list[Row]:
    """What the limits come from."""
    common: dict[str, Any] = {
        "bench": BENCH,
        "work": "hardware",
        "model": "",
        "engine": f"{threads} threads",
    }
    read, gemm = hardware.read_bytes_per_s / 1e9, hardware.gemm_flop_per_s / 1e9
    return [
        Row.over([read], metric="read bandwidth", unit="GB/s", **common),
        Row.over([gemm], metric="GEMM peak of floats", unit="GFLOP/s", **common),
    ]


def rows_by_work(
    comparison: Comparison, engines: Sequence[EngineSpec], folder: Path, hardware: Hardware
) -> dict[str, list[Row]]:
    """The rows of each work that was done, in the order of the engines."""
    tables: dict[str, list[Row]] = {}
    for name, figure in _figures(folder, hardware).items():
        samples = {
            engine.name: found[name]
            for engine in engines
            if name in (found := comparison.samples.get(engine.name, {}))
        }
        if samples:
            done = [engine for engine in engines if engine.name in samples]
            tables[name] = _table(figure, done, samples, folder.name)
    return tables


def share_of_limit(row: Row) -> str:
    """How near the median comes to the limit, whether more or less is better."""
    if row.limit is None:
        return ""
    return f"{min(row.median / row.limit, row.limit / row.median):.0%}"


def _figures(folder: Path, hardware: Hardware) -> dict[str, _Figure]:
    def limit(work: Work, engine: EngineSpec) -> float | None:
        if work.multiplies and engine.width != "float":
            return None
        return work.limit(sizes(folder, engine.weight_bytes, engine.kv_bytes), hardware)

    def none(_: EngineSpec) -> None:
        return None

    figures = {
        work.name: _Figure(
            work.description,
            work.metric,
            work.unit,
            work.more_is_better,
            partial(limit, work),
        )
        for work in WORKS
    }
    figures[START] = _Figure("start: process to first token", "start", "s", False, none)
    figures[RSS] = _Figure("rss: after the first token", "peak resident", "MiB", False, none)
    return figures


def _table(
    figure: _Figure, engines: Sequence[EngineSpec], samples: dict[str, list[Sample]], model: str
) -> list[Row]:
    common: dict[str, Any] = {"bench": BENCH, "work": figure.description, "model": model}
    values = {name: [sample.value for sample in taken] for name, taken in samples.items()}
    rows = [
        Row.over(
            values[engine.name],
            engine=engine.name,
            metric=figure.metric,
            unit=figure.unit,
            limit=figure.limit(engine),
            **common,
        )
        for engine in engines
    ]
    for engine in engines:
        best = _best_peer(engine, engines, values, figure.more_is_better)
        if engine.is_ours and best is not None:
            metric = f"times as good as {best}"
            ratios = _ratios(values[engine.name], values[best], figure.more_is_better)
            rows.append(Row.over(ratios, engine=engine.name, metric=metric, unit="x", **common))
    return [*rows, *_spoiled(samples, common)]


def _best_peer(
    ours: EngineSpec,
    engines: Sequence[EngineSpec],
    values: dict[str, list[float]],
    more_is_better: bool,
) -> str | None:
    """The peer with the best median among those with weights as wide as ours."""
    peers = [e.name for e in engines if not e.is_ours and e.width == ours.width]
    best = max if more_is_better else min
    return best(peers, key=lambda name: median(values[name]), default=None)


def _ratios(ours: list[float], theirs: list[float], more_is_better: bool) -> list[float]:
    """Run by run: above one, ours is better."""
    pairs = zip(ours, theirs, strict=True)
    return [mine / other if more_is_better else other / mine for mine, other in pairs]


def _spoiled(samples: dict[str, list[Sample]], common: dict[str, Any]) -> list[Row]:
    """For engines that had any: samples discarded for foreign load, and those kept despite it."""
    rows = []
    for name, taken in samples.items():
        counts = {
            "repeated: foreign load": sum(sample.repeats for sample in taken),
            "KEPT despite foreign load": sum(sample.spoiled for sample in taken),
        }
        rows += [
            Row.over([count], engine=name, metric=metric, unit="samples", **common)
            for metric, count in counts.items()
            if count
        ]
    return rows
