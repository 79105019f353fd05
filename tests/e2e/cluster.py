"""`trunkline serve` as a process of its own, and what can be seen of its cluster from outside."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.e2e.patience import PATIENCE_S, wait_until
from tests.e2e.served_cluster import ServedCluster

TRUNKLINE = [sys.executable, "-c", "from ops.cli import main; main()"]
_MARK = "TRUNKLINE_TEST_MARK"


class Cluster(ServedCluster):
    """A running `trunkline serve`; every process of it carries a mark in its environment, or has
    the cluster's directory in its command line."""

    def __init__(self, directory: Path, model: str, settings: dict[str, Any]) -> None:
        """`directory` is its own; `settings` is a tree as in the settings file."""
        self._directory = directory
        self._mark = uuid.uuid4().hex
        self._output, self._errors = directory / "output", directory / "errors"
        self._config = directory / "settings.yaml"
        # JSON is YAML.
        self._config.write_text(json.dumps(settings))
        ports = ("--grpc-port", "0", "--http-port", "0")
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [*TRUNKLINE, "serve", model, "--config", str(self._config), *ports],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=self.environment | {_MARK: self._mark, "TMPDIR": str(directory)},
                start_new_session=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        """Lets commands find this cluster and no other."""
        return os.environ | {"XDG_RUNTIME_DIR": str(self._directory)}

    @property
    def traces(self) -> list[Path]:
        """What lies in the places where it may leave files: of a clean end there are none."""
        ours = {self._output, self._errors, self._config}
        return [path for path in self._directory.rglob("*") if path.is_file() and path not in ours]

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return self._output.read_text() + self._errors.read_text()

    def wait_ready(self) -> None:
        """Return when all replicas serve. Raises AssertionError if it ends before."""
        wait_until(self._has_printed_its_block, "trunkline serve is ready")
        [path] = self._directory.glob(f"trunkline-{os.getuid()}/*.json")
        self.read_run_file(path)
        assert httpx.get(f"{self.http}/readyz").status_code == 200

    def _has_printed_its_block(self) -> bool:
        assert self.process.poll() is None, self.said
        return "Ctrl-C drains and stops it." in self._output.read_text()

    def command(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run another `trunkline` command beside it, to its end."""
        return subprocess.run(
            [*TRUNKLINE, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env=self.environment,
        )

    @contextmanager
    def changed_settings(self, settings: dict[str, Any]) -> Iterator[None]:
        """Have other settings in its file for a while, by section."""
        as_it_was = self._config.read_text()
        self._config.write_text(json.dumps(json.loads(as_it_was) | settings))
        try:
            yield
        finally:
            self._config.write_text(as_it_was)

    def processes(self) -> list[psutil.Process]:
        """Every living process that it has started, directly or not, and itself."""
        return [p for p in psutil.process_iter() if self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get(_MARK) == self._mark
            # Redis writes its title over its environment.
            ours = ours or any(str(self._directory) in part for part in process.cmdline())
            return ours and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def redis_servers(self) -> dict[str, psutil.Process]:
        """Its own Redis servers by their sockets."""
        titles = {p: " ".join(p.cmdline()).split() for p in self.processes()}
        servers = {p: title for p, title in titles.items() if "redis-server" in title[0]}
        return {title[-1].removeprefix("unixsocket:"): p for p, title in servers.items()}

    def router(self) -> psutil.Process:
        """The process of its router."""
        [found] = [p for p in self.processes() if "router.main" in p.cmdline()]
        return found

    def leaders(self) -> set[int]:
        """Process ids of all leaders of replicas, registered or not."""
        return {p.pid for p in self.processes() if "ServeReplica" in " ".join(p.cmdline())}

    def wait_end(self) -> int:
        """Return its exit code once it has ended and left no process behind."""
        code = self.process.wait(PATIENCE_S)
        wait_until(lambda: not self.processes(), "no process is left behind")
        return code

    def kill(self) -> None:
        """End whatever is left of it, in whatever way."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@contextmanager
def serving(model: str, settings: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster that is ready; told to end afterwards if it still runs, and seen to its end."""
    with starting(model, settings) as cluster:
        cluster.wait_ready()
        yield cluster


@contextmanager
def starting(model: str, settings: dict[str, Any]) -> Iterator[Cluster]:
    """A cluster that is not yet ready."""
    # Not pytest's directory, whose path is too long for the names of sockets.
    with tempfile.TemporaryDirectory(prefix="e-") as name:
        cluster = Cluster(Path(name), model, settings)
        try:
            yield cluster
            if cluster.process.poll() is None:
                cluster.process.send_signal(signal.SIGTERM)
                assert cluster.wait_end() == 0
                assert cluster.traces == []
        finally:
            cluster.kill()
