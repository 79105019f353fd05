"""`trunkline bench serve`, from its arguments to the rows it writes."""

import json
from pathlib import Path

import grpc
from typer.testing import CliRunner, Result

from ops.bench.cli import app
from tests.ops.bench import fake_openai
from tests.ops.bench.fake_openai import FakeOpenAI
from tests.proto import fake_inference
from tests.proto.fake_inference import Failure, FakeInference

SMALL = ("--requests=6", "--prompt-tokens=8", "--output-tokens=4", "--runs=2")
WARM_UP = 4


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments])


def test_a_closed_loop_over_grpc_writes_rows(tmp_path: Path) -> None:
    service = FakeInference()
    file = tmp_path / "rows.json"
    with fake_inference.serve(service) as address:
        result = bench(address, *SMALL, "--clients=2", f"--json={file}")
    assert result.exit_code == 0, result.output
    assert "TTFT p50" in result.output
    assert len(service.generations) == WARM_UP + 2 * 6
    rows = {row["metric"]: row for row in json.loads(file.read_text())}
    assert {"TPOT p90", "inter-token latency p99", "end-to-end latency p50"} <= rows.keys()
    assert rows["errors"]["high"] == 0
    row = rows["output throughput"]
    assert row["low"] <= row["median"] <= row["high"]
    assert (row["bench"], row["work"]) == ("serve", "6 x (8 + 4), 2 clients")
    assert (row["model"], row["engine"], row["unit"]) == ("fake", "trunkline", "tokens/s")


def test_an_open_loop_over_http(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    service = FakeOpenAI()
    with fake_openai.serve(service) as url:
        # Ids below the vocabulary's size of one are all 0, to which this server says it is busy.
        result = bench(url, *SMALL, "--vocab-size=1")
        assert result.exit_code == 1
        assert "HTTP_429" in result.output
        result = bench(url, *SMALL, "--rate=200", "--engine=peer", f"--json={file}", "--seed=5")
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert {row["engine"] for row in rows} == {"peer"}
    assert {row["work"] for row in rows} == {"6 x (8 + 4), 200 requests/s"}


def test_failures_are_reported_and_make_the_command_fail(tmp_path: Path) -> None:
    service = FakeInference()
    file = tmp_path / "rows.json"
    failure = Failure(grpc.StatusCode.INTERNAL, after_words=2)
    harmless = Failure(grpc.StatusCode.OK, after_words=99)
    service.failures = [harmless] * (1 + WARM_UP) + [failure]
    with fake_inference.serve(service) as address:
        result = bench(address, *SMALL, f"--json={file}")
    assert result.exit_code == 1
    rows = {row["metric"]: row for row in json.loads(file.read_text())}
    assert (rows["errors: INTERNAL"]["low"], rows["errors: INTERNAL"]["high"]) == (0, 1)


def test_an_unreachable_server_is_a_short_message() -> None:
    result = bench("localhost:1", *SMALL)
    assert result.exit_code == 1
    assert result.output.startswith("localhost:1: UNAVAILABLE")
    assert "Traceback" not in result.output
