"""Rows show and keep what was measured."""

import json
from pathlib import Path

import pytest

from ops.bench.report import Row, print_rows, write_rows


def row(engine: str, *values: float) -> Row:
    return Row.over(
        values,
        bench="serve",
        work="64 x (256 + 128)",
        model="demo",
        engine=engine,
        metric="TTFT p50",
        unit="ms",
    )


def test_a_row_tells_median_and_range() -> None:
    one = row("ours", 3, 1, 2)
    assert (one.median, one.low, one.high) == (2, 1, 3)


def test_the_table_says_once_what_all_rows_share(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([row("ours", 12.5), row("theirs", 1234.5)], "Title")
    shown = capsys.readouterr().out
    assert shown.count("64 x (256 + 128)") == shown.count("model: demo") == 1
    for word in ("Title", "ours", "theirs", "12.5", "1,234", "TTFT p50", "ms"):
        assert word in shown


def test_written_rows_can_be_read_back(tmp_path: Path) -> None:
    rows = [row("ours", 1, 2), row("theirs", 3)]
    write_rows(rows, tmp_path / "rows.json")
    assert [Row(**content) for content in json.loads((tmp_path / "rows.json").read_text())] == rows
