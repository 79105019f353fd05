"""Ends what is left of a local cluster when the process that started it is gone.

`python -m cluster.reaper MARK` reads standard input until the other end is closed, which happens
when the starting process ends in whatever way, and then kills every process that carries MARK in
its environment. Ray's own processes would outlive a killed driver by a minute and more.
"""

import sys
from collections.abc import Iterator
from contextlib import suppress

import psutil

MARK_VARIABLE = "TRUNKLINE_CLUSTER_MARK"
_ROUND_S = 2.0


def main() -> None:
    """Wait for the end, then reap."""
    sys.stdin.buffer.read()
    reap(sys.argv[1])


def reap(mark: str) -> None:
    """Kill all processes that carry the mark, until there is none."""
    while found := list(marked(mark)):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=_ROUND_S)


def marked(mark: str) -> Iterator[psutil.Process]:
    """This user's living processes that were started with the mark, the caller left out."""
    this = psutil.Process()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            carries = process.environ().get(MARK_VARIABLE) == mark
            if carries and process != this and process.status() != psutil.STATUS_ZOMBIE:
                yield process


if __name__ == "__main__":
    main()
