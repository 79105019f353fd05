"""bench tiers: every way is measured, and none is taken for another."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ops.bench.cli import app
from workers.engine import redis_tier


def test_each_way_has_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose prefix is not found where it should be is an error, not a figure."""
    monkeypatch.setattr(redis_tier, "_LEAST_WAIT_S", 5.0)  # so small a model computes at once
    file = tmp_path / "rows.json"
    arguments = ["tiers", "--model", "demo-small", "--prefix-tokens", "64", "--runs", "1"]
    result = CliRunner().invoke(app, [*arguments, "--json", str(file)])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert [(row["engine"], row["unit"]) for row in rows] == [
        ("computed", "ms"),
        ("host memory", "ms"),
        ("host memory", "x"),
        ("redis", "ms"),
        ("redis", "x"),
    ]
    assert all(row["limit"] > 0 for row in rows[1:])


@pytest.mark.parametrize("wrong", [["--model", "none"], ["--prefix-tokens", "20"]])
def test_what_cannot_be_measured_is_refused(wrong: list[str]) -> None:
    assert CliRunner().invoke(app, ["tiers", *wrong]).exit_code != 0
