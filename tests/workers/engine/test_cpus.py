"""Compute threads: no more than affinity and the container's quota give."""

import os
from pathlib import Path

import pytest

from workers.engine.cpus import usable_cpus


@pytest.mark.parametrize(
    ("written", "most"), [("max 100000", 10_000), ("150000 100000", 1), ("50000 100000", 1)]
)
def test_the_quota_of_the_control_group_is_kept(tmp_path: Path, written: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{written}\n")
    allowed = len(os.sched_getaffinity(0))
    assert 1 <= usable_cpus(tmp_path / "cpu.max") <= min(most, allowed)


def test_without_control_groups_affinity_counts(tmp_path: Path) -> None:
    assert 1 <= usable_cpus(tmp_path / "missing") <= len(os.sched_getaffinity(0))
