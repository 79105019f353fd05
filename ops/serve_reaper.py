"""The process that outlives a command that starts others, to end whatever else would."""

import os
import secrets
import subprocess
import sys

from cluster.reaper import MARK_VARIABLE, reap


class Reaper:
    """From its start on, all children of this process carry the mark by which it knows them."""

    def __init__(self) -> None:
        self._mark = mark = secrets.token_hex(16)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.reaper", mark],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        os.environ[MARK_VARIABLE] = mark

    def clear(self) -> None:
        """Kill all children that are left so far, and wait until they are gone."""
        reap(self._mark)

    def reap(self) -> None:
        """Kill all that is left, and wait until it is gone."""
        os.environ.pop(MARK_VARIABLE, None)
        self._process.communicate()
