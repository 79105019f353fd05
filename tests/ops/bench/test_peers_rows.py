"""Rows compare like with like, and say what was spoiled."""

from pathlib import Path

import pytest

from ops.bench.hardware import Hardware
from ops.bench.limits import batch_seconds, prefill_seconds, sizes, step_seconds
from ops.bench.peers.engine_spec import OURS, EngineSpec
from ops.bench.peers.rows import rows_by_work, share_of_limit
from ops.bench.peers.samples import Sample
from ops.bench.peers.turns import START, Comparison
from ops.bench.report import Row
from ops.models.random_model import write_random_model
from ops.models.shapes import NAMED

HARDWARE = Hardware(read_bytes_per_s=1e9, gemm_flop_per_s=1e10)
OURS_FLOAT = EngineSpec(name="ours", venv=OURS, module="x")
OURS_INT8 = EngineSpec(name="ours int8", venv=OURS, module="x", width="int8", weight_bytes=1.0)
SLOW = EngineSpec(name="slow", venv="x", module="x")
FAST = EngineSpec(name="fast", venv="x", module="x")
INT8 = EngineSpec(name="int8", venv="x", module="x", width="int8")
ENGINES = [OURS_FLOAT, OURS_INT8, SLOW, FAST, INT8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model")
    write_random_model(NAMED["demo-small"], path)
    return path


def table(folder: Path, work: str, values: dict[str, list[float]]) -> dict[tuple[str, str], Row]:
    comparison = Comparison()
    for engine, figures in values.items():
        for figure in figures:
            comparison.add(engine, work, Sample(figure, repeats=0, spoiled=False))
    [(name, rows)] = rows_by_work(comparison, ENGINES, folder, HARDWARE).items()
    assert name == work
    return {(row.engine, row.metric): row for row in rows}


def test_the_ratio_is_run_by_run_over_the_best_peer_of_the_same_width(folder: Path) -> None:
    rows = table(
        folder,
        "decode",
        {"ours": [30, 60], "ours int8": [90, 90], "slow": [1, 1], "fast": [20, 30], "int8": [9, 9]},
    )
    ratio = rows["ours", "times as good as fast"]
    assert (ratio.low, ratio.median, ratio.high, ratio.unit) == (1.5, 1.75, 2.0, "x")
    assert rows["ours int8", "times as good as int8"].median == 10
    assert rows["slow", "decode"].median == 1


def test_where_less_is_better_the_ratio_is_the_other_way_round(folder: Path) -> None:
    rows = table(folder, START, {"ours": [2, 2], "slow": [9, 9], "fast": [4, 4]})
    assert rows["ours", "times as good as fast"].median == 2


def test_without_a_peer_there_is_no_ratio(folder: Path) -> None:
    assert table(folder, "decode", {"ours": [1]}).keys() == {("ours", "decode")}


def test_repeated_and_spoiled_samples_are_told(folder: Path) -> None:
    comparison = Comparison()
    comparison.add("ours", "decode", Sample(1.0, repeats=3, spoiled=False))
    comparison.add("ours", "decode", Sample(1.0, repeats=4, spoiled=True))
    rows = rows_by_work(comparison, ENGINES, folder, HARDWARE)["decode"]
    counts = {row.metric: row.median for row in rows if row.unit == "samples"}
    assert counts == {"repeated: foreign load": 7, "KEPT despite foreign load": 1}


def test_limits_count_every_weight_of_the_checkpoint(folder: Path) -> None:
    model = sizes(folder, weight_bytes=2.0, kv_bytes=2.0)
    shape = NAMED["demo-small"]
    assert model.layers + model.head == pytest.approx(shape.num_parameters, rel=0.02)
    assert model.kv_token == 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim
    weights = model.layers + model.head
    # One sequence is bound by reading, many tokens by multiplying.
    read_s = (2 * weights + 2 * 10 * model.kv_token) / 1e9
    assert step_seconds(model, 1, 10, HARDWARE) == pytest.approx(read_s)
    flop = 2 * (1000 * model.layers + model.head)
    assert prefill_seconds(model, 1, 1000, HARDWARE) == pytest.approx(flop / 1e10)
    whole_s = prefill_seconds(model, 8, 16, HARDWARE) + 3 * step_seconds(model, 8, 18, HARDWARE)
    assert batch_seconds(model, 8, 16, 4, HARDWARE) == pytest.approx(whole_s)


def test_quantized_engines_have_limits_of_reading_only(folder: Path) -> None:
    decode = table(folder, "decode", {"ours": [1], "ours int8": [1]})
    limits = [decode[name, "decode"].limit for name in ("ours", "ours int8")]
    assert limits[0] is not None
    assert limits[1] is not None
    assert limits[0] < limits[1] < 2 * limits[0]  # the KV of both is as large
    prefill = table(folder, "prefill", {"ours": [1], "ours int8": [1]})
    assert prefill["ours", "prefill"].limit is not None
    assert prefill["ours int8", "prefill"].limit is None


@pytest.mark.parametrize(("median", "limit"), [(50.0, 100.0), (100.0, 50.0)])
def test_the_share_of_the_limit_is_never_above_one(median: float, limit: float) -> None:
    row = Row("peers", "w", "m", "e", "x", "ms", median, median, median, limit)
    assert share_of_limit(row) == "50%"
