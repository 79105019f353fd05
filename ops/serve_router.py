"""The router's processes, kept alive."""

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


class RouterProcesses:
    """As many processes of the router as the settings say, all at the same addresses."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """See RouterProcess."""
        numbers = range(settings.router.processes)
        self._processes = [RouterProcess(settings, directory, number) for number in numbers]

    async def start(self) -> dict[str, str]:
        """Returns their addresses by protocol. Raises CommandError. Call from the main thread."""
        first, *others = self._processes
        addresses = await first.start()
        for process in others:
            process.pin_ports(addresses)
        await asyncio.gather(*(process.start() for process in others))
        return addresses

    async def keep(self) -> None:
        """Start each again whenever it ends, at the same addresses, until cancelled."""
        await asyncio.gather(*(process.keep() for process in self._processes))

    async def stop(self) -> None:
        """Drain and end them; harmless if they have ended."""
        await asyncio.gather(*(process.stop() for process in self._processes))


class RouterProcess:
    """Starts `router.main`, starts it again should it end, and drains it."""

    def __init__(self, settings: Settings, directory: Path, number: int) -> None:
        """`settings` with redis.url; `directory` private to the user, for settings and log.

        `number` is 0 for the first process of the router.
        """
        self._settings = _with_own_metrics_port(settings, number)
        name = f"router-{number}" if number else "router"
        self._config = directory / f"{name}.json"
        self._log = directory / f"{name}.log"
        self._process: Process | None = None

    async def start(self) -> dict[str, str]:
        """Returns its addresses by protocol. Raises CommandError. Call from the main thread."""
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                addresses = await self._spawn()
        except TimeoutError as error:
            raise CommandError("the router does not start in time") from error
        self.pin_ports(addresses)
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

    def pin_ports(self, addresses: dict[str, str]) -> None:
        """A router that is started again must be found where the first one was."""
        ports = {f"{name}_port": int(a.rpartition(":")[2]) for name, a in addresses.items()}
        router = self._settings.router.model_copy(update=ports)
        self._settings = self._settings.model_copy(update={"router": router})

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _with_own_metrics_port(settings: Settings, number: int) -> Settings:
    port = settings.router.metrics_port
    if port is None:
        return settings
    router = settings.router.model_copy(update={"metrics_port": port + number})
    return settings.model_copy(update={"router": router})


def _environment() -> dict[str, str]:
    """Without our settings, which the file has already taken in and the command line overridden."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_ENVIRONMENT_PREFIX)}
