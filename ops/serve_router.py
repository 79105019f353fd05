"""The router's process, kept alive."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

from cluster.child_process import tied
from cluster.settings import Settings
from ops.failure import CommandError

_START_TIMEOUT_S = 30.0
_RESTART_PAUSE_S = 0.5
_STOP_MARGIN_S = 5.0
_ENVIRONMENT_PREFIX = "TRUNKLINE__"


class RouterProcess:
    """Starts `router.main`, starts it again should it end, and drains it."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """`settings` with redis.url; `directory` private to the user, for settings and log."""
        self._settings = settings
        self._config = directory / "router.json"
        self._log = directory / "router.log"
        self._process: Process | None = None

    async def start(self) -> dict[str, str]:
        """Returns its addresses by protocol. Raises CommandError. Call from the main thread."""
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                addresses = await self._spawn()
        except TimeoutError as error:
            raise CommandError("the router does not start in time") from error
        self._pin_ports(addresses)
        return addresses

    async def keep(self) -> None:
        """Start it again whenever it ends, at the same addresses, until cancelled."""
        while True:
            assert self._process is not None, "start() comes first"
            await self._process.wait()
            await asyncio.sleep(_RESTART_PAUSE_S)
            try:
                await self.start()
            except CommandError:
                # Its port may still be in use; its log says what is wrong.
                continue

    async def stop(self) -> None:
        """Drain and end it; harmless if it has ended."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(self._settings.router.drain_timeout_s + _STOP_MARGIN_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _spawn(self) -> dict[str, str]:
        # By file and not by argument or environment, which other users may read.
        self._config.write_text(self._settings.model_dump_json(), encoding="utf-8")
        with self._log.open("ab") as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *tied([sys.executable, "-m", "router.main", "--config", str(self._config)]),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=log,
                env=_environment(),
                # Ctrl-C in the terminal is for the parent, which stops its children in order.
                start_new_session=True,
            )
        assert process.stdout is not None, "it was asked for"
        line = await process.stdout.readline()
        if not line:
            await process.wait()
            raise CommandError(f"the router does not start: {self._last_words()}")
        addresses: dict[str, str] = json.loads(line)
        return addresses

    def _pin_ports(self, addresses: dict[str, str]) -> None:
        """A router that is started again must be found where the first one was."""
        ports = {f"{name}_port": int(a.rpartition(":")[2]) for name, a in addresses.items()}
        router = self._settings.router.model_copy(update=ports)
        self._settings = self._settings.model_copy(update={"router": router})

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _environment() -> dict[str, str]:
    """Without our settings, which the file has already taken in and the command line overridden."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_ENVIRONMENT_PREFIX)}
