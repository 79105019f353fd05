"""Ranks as child processes on this machine, for work without a cluster."""

import subprocess
import sys

from cluster.child_process import tied
from workers.engine.launcher import RankNotStarted


class SubprocessLauncher:
    """A Launcher. The ranks end with this process, however it ends; see `tied`."""

    node = "127.0.0.1"

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[str]] = {}

    def launch(self, rank: int, address: str, token: str) -> None:
        """See Launcher. The token goes through a pipe, where nobody else can read it."""
        command = [sys.executable, "-m", "workers.engine.rank_process"]
        child = subprocess.Popen(
            tied([*command, address, str(rank), self.node]),
            stdin=subprocess.PIPE,
            text=True,
            # Ctrl-C is the leader's business.
            process_group=0,
        )
        self._children[rank] = child
        assert child.stdin is not None
        with child.stdin:
            child.stdin.write(token)

    def check(self) -> None:
        """See Launcher."""
        for rank, child in self._children.items():
            if (code := child.poll()) is not None:
                raise RankNotStarted(f"rank {rank} ended with exit code {code}, see its log")

    def kill(self) -> None:
        """See Launcher."""
        for child in self._children.values():
            child.kill()
        for child in self._children.values():
            child.wait()
