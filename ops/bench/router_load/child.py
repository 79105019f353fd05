"""The processes of a measurement."""

import asyncio
import json
import os
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from cluster.child_process import tied
from ops.bench.router_load.load import Load, Outcome

_START_S = 120.0
_LINE_BYTES = 1 << 20
_CPU_CLOCK = 2
"""The kernel's number for a clock that counts what the scheduler gives a process."""


class ChildFailed(Exception):  # noqa: N818 - it is news, not a mistake
    """A process that did not do what it was started for."""


class Running:
    """A process that is spoken with in lines."""

    def __init__(self, process: Process, log: Path) -> None:
        assert process.stdin is not None, "it was asked for"
        assert process.stdout is not None, "it was asked for"
        self.pid = process.pid
        self._process = process
        self._input, self._output = process.stdin, process.stdout
        self._log = log

    @property
    def has_ended(self) -> bool:
        """Whether it has, by itself."""
        return self._process.returncode is not None

    @property
    def last_words(self) -> str:
        """The last line of its errors."""
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1] if lines else "it has said nothing"

    async def say(self, line: str) -> None:
        """Send a line."""
        self._input.write(line.encode() + b"\n")
        await self._input.drain()

    async def hear(self) -> bytes:
        """Its next line. Raises ChildFailed if it has ended."""
        if line := await self._output.readline():
            return line
        raise ChildFailed(self.last_words)


class Child:
    """A module's process, which has told where it listens."""

    def __init__(self, process: Running, pid: int, addresses: Mapping[str, str]) -> None:
        self.process = process
        self.pid = pid
        self.addresses = addresses

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        return time.clock_gettime(~self.pid << 3 | _CPU_CLOCK)


async def apply(load: Load, target: Child, generator: Child) -> tuple[Outcome, float]:
    """What came of a load, and the target's CPU time in seconds. Raises ChildFailed."""
    process = generator.process
    await process.say(json.dumps([target.addresses[load.protocol], asdict(load)]))
    await process.hear()
    before_s = target.cpu_s()
    await process.say("go")
    outcome = await process.hear()
    return Outcome(**json.loads(outcome)), target.cpu_s() - before_s


@asynccontextmanager
async def child(
    module: str,
    *arguments: str,
    directory: Path,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Child]:
    """Runs `python -m MODULE ARGUMENTS`, from its first line of output on.

    The line is JSON: addresses by protocol, and `pid` if what listens is another process. Errors go
    to a file in `directory`; `environment` is for this process alone. Raises ChildFailed.
    """
    command = [sys.executable, "-m", module, *arguments]
    async with running(command, directory / f"{module}.log", environment) as process:
        async with asyncio.timeout(_START_S):
            told = json.loads(await process.hear())
        yield Child(process, told.pop("pid", process.pid), told)


@asynccontextmanager
async def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[Running]:
    """A process until the context ends: its input is closed, and it is told to end."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            *tied(command),
            stdin=PIPE,
            stdout=PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            limit=_LINE_BYTES,
        )
    try:
        yield Running(process, log)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
