"""This machine's part of a Ray cluster of several: a child process, started, watched, stopped."""

import sys
from asyncio import StreamReader, create_subprocess_exec, timeout
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from cluster.child_process import tied

_START_TIMEOUT_S = 120.0


class JoinError(Exception):
    """This machine cannot be part of the cluster; the message says why."""


class HeadUnreachableError(JoinError):
    """Nobody answers there; this may pass."""


class NodeSpec(BaseModel):
    """What the child is told."""

    model_config = ConfigDict(frozen=True)

    is_head: bool
    """Whether the cluster begins here; otherwise this machine joins it."""
    head: str
    """host:port at which machines join."""
    address: str
    """This machine's address, of those that the other machines reach."""
    num_cpus: int
    labels: dict[str, str] = {}
    object_store_bytes: int
    directory: Path
    """For its files; the path has to be short enough for the names of sockets."""
    drain_timeout_s: float = 0.0
    """Of the head: how long replicas on a machine that leaves may take to finish."""


class NodeReport(BaseModel):
    """What the child says, a line of JSON each: first `up` or why it is not, later `lost`."""

    model_config = ConfigDict(frozen=True)

    event: Literal["up", "unreachable", "refused", "lost"]
    message: str = ""


class RayNode:
    """Runs `cluster.ray_node_main`. To be used from the main thread's event loop.

    Whatever it has started is gone soon after the child is, however that ended.
    """

    def __init__(self, spec: NodeSpec, log: Path) -> None:
        """`log` gets what the child prints beside its reports."""
        self._spec = spec
        self._log = log
        self._process: Process | None = None

    async def start(self) -> None:
        """Return when this machine is part of the cluster.

        Raises JoinError, in particular HeadUnreachableError. Call cluster.ray_environment's
        `prepare_shared` before.
        """
        with self._log.open("ab") as log:
            self._process = process = await create_subprocess_exec(
                *tied([sys.executable, "-m", "cluster.ray_node_main"]),
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                # Ctrl-C in the terminal is for the parent, which stops its children in order.
                start_new_session=True,
            )
        assert process.stdin is not None, "it was asked for"
        process.stdin.write(self._spec.model_dump_json().encode())
        process.stdin.write_eof()
        try:
            async with timeout(_START_TIMEOUT_S):
                report = await self._report()
        except TimeoutError as error:
            await self.kill()
            raise JoinError(f"Ray does not start in {_START_TIMEOUT_S:.0f} s") from error
        if report.event != "up":
            await process.wait()
            kind = HeadUnreachableError if report.event == "unreachable" else JoinError
            raise kind(report.message)

    async def wait_lost(self) -> str:
        """Return when this machine is no longer part of the cluster, and why."""
        assert self._process is not None, "start() comes first"
        report = await self._report()
        await self._process.wait()
        return report.message

    async def stop(self, timeout_s: float | None = None) -> None:
        """Let this machine's replicas finish, then end all; harmless if it has ended.

        The child limits the time that takes by itself; after `timeout_s` it is killed.
        """
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with timeout(timeout_s):
                await process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End it at once; harmless if it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _report(self) -> NodeReport:
        assert self._process is not None, "start() comes first"
        assert isinstance(self._process.stdout, StreamReader), "it was asked for"
        if line := await self._process.stdout.readline():
            return NodeReport.model_validate_json(line)
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return NodeReport(event="lost", message=lines[-1] if lines else "Ray's process has ended")
