"""Ranks forked from a process that has imported all they need, which is quicker than starting each.

Otherwise as SubprocessLauncher starts them.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from cluster.logs import configure_logs
from cluster.settings import LogSettings
from workers.engine.launcher import RankNotStarted
from workers.engine.rank_process import run_rank

# Where forked processes find the tests' own modules.
sys.path.append(str(Path(__file__).parents[3]))

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class ForkedRanks:
    """A Launcher; `processes` are those of ranks 1, 2 and so on, whose logs go to a file each."""

    node = "127.0.0.1"

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.processes: list[ForkServerProcess] = []

    def launch(self, rank: int, address: str, token: str) -> None:
        arguments = (self._logs / f"rank-{rank}", address, token, rank, self.node)
        process = CONTEXT.Process(target=_run, args=arguments, daemon=True)
        process.start()
        self.processes.append(process)

    def check(self) -> None:
        for process in self.processes:
            if process.exitcode is not None:
                raise RankNotStarted(f"{process.name} ended with exit code {process.exitcode}")

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def logs(self) -> str:
        """All that ranks have written to standard error."""
        return "".join(path.read_text() for path in self._logs.glob("rank-*"))


def _run(log: Path, address: str, token: str, rank: int, node: str) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    configure_logs(LogSettings(), process="rank")
    run_rank(address, token, rank, node)
