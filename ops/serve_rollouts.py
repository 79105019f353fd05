"""Rolling updates of the cluster that `trunkline serve` runs."""

import asyncio
import signal
from collections.abc import Callable

from cluster.settings import Settings
from ops.failure import CommandError
from ops.serve_cluster import LocalCluster
from ops.serve_screen import Screen

SIGNAL = signal.SIGUSR1
"""Asks for one; not SIGHUP, by which a terminal says that it is gone."""


class Rollouts:
    """One after the other; what is asked for during one is part of the next."""

    def __init__(
        self, cluster: LocalCluster, screen: Screen, read_settings: Callable[[], Settings]
    ) -> None:
        """From now on the signal is taken; `read_settings` raises CommandError."""
        self._cluster = cluster
        self._screen = screen
        self._read_settings = read_settings
        self._asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(SIGNAL, self._asked.set)

    async def run(self) -> None:
        """Roll out whenever it is asked for, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._screen.say("rolling out: new replicas start, then the old ones drain")
            failure = await self._roll_out()
            told = f"not rolled out: {failure}" if failure else "rolled out"
            self._screen.say(told)
            self._cluster.note_rollout(failure)

    async def _roll_out(self) -> str:
        """Why it failed; empty if it did not."""
        try:
            await self._cluster.roll_out(self._read_settings())
        except CommandError as error:
            return str(error)
        return ""
