"""The reaper ends what carries its mark when its other end is closed, and nothing else."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.reaper import MARK_VARIABLE, marked

_SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def sleepers() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Three processes with the mark "m", one of them a grandchild's kind, and one without."""
    marks = ["m", "m", "other", None]
    started = [
        subprocess.Popen(
            _SLEEP,
            stdin=subprocess.PIPE,
            env=os.environ | ({MARK_VARIABLE: mark} if mark else {}),
            start_new_session=True,
        )
        for mark in marks
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_marked_processes_end_and_others_stay(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    assert {p.pid for p in marked("m")} == {p.pid for p in sleepers[:2]}
    reaper = subprocess.Popen([sys.executable, "-m", "cluster.reaper", "m"], stdin=subprocess.PIPE)
    reaper.communicate()
    assert [process.wait(timeout=30) for process in sleepers[:2]] == [-9, -9]
    assert [process.poll() for process in sleepers[2:]] == [None, None]
