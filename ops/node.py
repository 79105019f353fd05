"""`trunkline node`: this machine as part of a cluster that another one started."""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.ray_environment import prepare_shared
from cluster.ray_node import HeadUnreachableError, JoinError, NodeSpec, RayNode
from cluster.settings import RaySettings, one_address
from ops.failure import CommandError, UsageError
from ops.join_token import read_token
from ops.serve_head import own_address_towards, require_own
from ops.serve_reaper import Reaper
from ops.serve_signals import EXIT_INTERRUPTED, StopSignals

_RETRY_S = 2.0


def node(
    head: str,
    *,
    token_file: Path | None,
    address: str | None,
    num_cpus: int | None,
    labels: Sequence[str],
) -> int:
    """Be part of the cluster until SIGINT or SIGTERM, then let this machine's replicas finish.

    `head` is host:port, `labels` are key=value. Returns the exit code. Raises UsageError, and
    CommandError if this machine cannot join.
    """
    token = read_token(token_file)
    directory = Path(tempfile.mkdtemp(prefix="trunkline-"))
    try:
        spec = _spec(head, address, num_cpus, labels, directory / "ray")
        prepare_shared(token)
        return asyncio.run(_Member(spec, directory / "ray.log").run())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Member:
    """This machine, as part of the cluster."""

    def __init__(self, spec: NodeSpec, log: Path) -> None:
        self._spec = spec
        self._ray = RayNode(spec, log)
        self._reaper = Reaper()
        self._joined = False

    async def run(self) -> int:
        """Join, and again whenever it is lost; leave on a signal. Raises CommandError."""
        signals = StopSignals()
        signals.heed()
        try:
            await signals.until_told(self._stay())
            _say("leaving; a second Ctrl-C does not wait for running requests")
            await self._ray.stop()
            return 0 if self._joined else EXIT_INTERRUPTED
        finally:
            await asyncio.to_thread(self._reaper.reap)

    async def _stay(self) -> None:
        try:
            await self._ray.start()
            self._joined = True
            while True:
                await self._tell_and_wait()
                await self._start_again()
        except JoinError as error:
            raise CommandError(str(error)) from error

    async def _tell_and_wait(self) -> None:
        """Return when this machine is no longer part of the cluster, and nothing runs any more."""
        spec = self._spec
        Console(highlight=False, soft_wrap=True).print(
            f"{spec.address} has joined the cluster of {spec.head} with {spec.num_cpus} CPUs\n"
            "Ctrl-C lets its replicas finish and leaves.",
            markup=False,
        )
        lost = await self._ray.wait_lost()
        await asyncio.to_thread(self._reaper.clear)
        _say(f"out of the cluster: {lost}; joining again")

    async def _start_again(self) -> None:
        """Join however long the head is away. Raises JoinError if it does not take this machine."""
        while True:
            try:
                return await self._ray.start()
            except HeadUnreachableError:
                await asyncio.sleep(_RETRY_S)


def _spec(
    head: str, address: str | None, num_cpus: int | None, labels: Sequence[str], directory: Path
) -> NodeSpec:
    """What Ray is told here. Raises UsageError."""
    from workers.engine.cpus import usable_cpus

    host, _, port = head.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--join: got {head!r}, expected host:port of a cluster's head")
    try:
        host = socket.gethostbyname(host)
        address = address or own_address_towards(host, int(port))
    except (OSError, OverflowError) as error:
        raise UsageError(f"--join: {head}: {error}") from error
    try:
        require_own(one_address(address), "--node-address")
    except ValueError as error:
        raise UsageError(str(error)) from error
    return NodeSpec(
        is_head=False,
        head=f"{host}:{port}",
        address=address,
        num_cpus=usable_cpus() if num_cpus is None else num_cpus,
        labels=_labels(labels),
        object_store_bytes=RaySettings().object_store_bytes,
        directory=directory,
    )


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            raise UsageError(f"--labels: got {pair!r}, expected key=value")
        labels[key] = value
    return labels


def _say(text: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
