"""`trunkline serve --node-address` on one host, `trunkline node` on others."""

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster.cluster_card import versions_here
from tests.e2e.cluster import TRUNKLINE
from tests.e2e.patience import PATIENCE_S, wait_until
from tests.e2e.served_cluster import ServedCluster
from tests.multinode.hosts import Host


class Command:
    """A `trunkline` command that runs on a host until it is told to stop."""

    def __init__(self, host: Host, *arguments: str, environment: dict[str, str]) -> None:
        self.host = host
        self._output = Path(host.directory, f"{arguments[0]}-{len(list(host.directory.iterdir()))}")
        self.process = host.start([*TRUNKLINE, *arguments], self._output, environment)

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return self._output.read_text() + self._output.with_suffix(".err").read_text()

    def wait_said(self, text: str) -> None:
        """Return when it has printed this. Raises AssertionError if it ends before."""
        wait_until(lambda: self._has_said(text), f"{self.host.address} says {text!r}")

    def _has_said(self, text: str) -> bool:
        assert text in self.said or self.process.poll() is None, self.said
        return text in self.said

    def wait_end(self) -> int:
        """Its exit code, once nothing that it has started runs any more."""
        code = self.process.wait(PATIENCE_S)
        wait_until(lambda: not self.host.processes(), f"nothing runs on {self.host.address}")
        return code

    def leave(self) -> int:
        """Tell it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_end()


class HeadCommand(Command, ServedCluster):
    """`trunkline serve` on a host that others can join."""

    def __init__(self, host: Host, model: str, settings: dict[str, Any]) -> None:
        """`settings` is a tree as in the settings file."""
        config = host.directory / "settings.yaml"
        config.write_text(json.dumps(settings))  # JSON is YAML
        super().__init__(
            host,
            *("serve", model, "--config", str(config)),
            *("--node-address", host.address, "--host", host.address),
            *("--grpc-port", "0", "--http-port", "0"),
            environment={},
        )

    def join_arguments(self) -> list[str]:
        """What it tells other machines to say, once it can be joined."""
        self.wait_said("other machines join by: ")
        command = self.said.partition("other machines join by: trunkline ")[2].splitlines()[0]
        return shlex.split(command)

    def wait_ready(self) -> None:
        """Return when all replicas serve."""
        self.wait_said("Ctrl-C drains and stops it.")
        [path] = self.host.directory.glob("trunkline-0/*.json")
        self.read_run_file(path)

    async def serves_on(self, *hosts: Host) -> bool:
        """Whether the router has a replica on each of these, and none elsewhere."""
        where = sorted(record.address.partition(":")[0] for record in await self.replicas())
        return where == sorted(host.address for host in hosts) and await self.has_ready(len(hosts))


def join(host: Host, arguments: list[str], *more: str) -> Command:
    """Say on `host` what the head told, and more; returns once it has joined."""
    command = Command(host, *arguments, "--node-address", host.address, *more, environment={})
    command.wait_said("has joined the cluster")
    return command


def failure(host: Host, *arguments: str, environment: dict[str, str]) -> tuple[int, str]:
    """The exit code of a command that is to end by itself, and what it prints."""
    command = Command(host, *arguments, environment=environment)
    return command.wait_end(), command.said


@contextmanager
def other_version(head: HeadCommand, address: str, token: dict[str, str]) -> Iterator[None]:
    """The cluster at `address` is one of another version of Trunkline, as its card has it."""
    command = [sys.executable, "-m", "tests.multinode.card_version", address]

    def claim(version: str) -> None:
        output = head.host.directory / "card"
        process = head.host.start([*command, version], output, token)
        assert process.wait(PATIENCE_S) == 0, output.with_suffix(".err").read_text()
        output.unlink()
        output.with_suffix(".err").unlink()

    claim("0.0.1")
    try:
        yield
    finally:
        claim(versions_here().trunkline)


def leaders(host: Host) -> list[psutil.Process]:
    """Processes of replicas on a host, registered or not."""
    return [p for p in host.processes() if "ServeReplica" in " ".join(p.cmdline())]


class TwoHosts:
    """The cluster, and the command that runs on its second host."""

    def __init__(self, hosts: list[Host], settings: dict[str, Any]) -> None:
        """The first host begins the cluster, with settings as in the settings file."""
        self.first, self.second = hosts
        self.head = HeadCommand(self.first, "demo-small", settings)
        self.join_arguments = self.head.join_arguments()
        self.node: Command

    def join(self) -> None:
        """Have the second host join, until it has."""
        self.node = join(self.second, self.join_arguments, "--num-cpus", "1")

    async def both_serve(self) -> bool:
        """Whether each has a replica."""
        return await self.head.serves_on(self.first, self.second)

    async def first_serves_alone(self) -> bool:
        """Whether the second has none, and the first has one."""
        return await self.head.serves_on(self.first)
