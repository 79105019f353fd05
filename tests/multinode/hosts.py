"""Hosts on one machine: network namespaces on a bridge, each with its own address.

What a host runs sees that host's interfaces alone. This process stands on the bridge too, beside
them. It all needs root and iproute2, and is gone afterwards, at the latest when the next test run
begins.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

_PREFIX = "tlh"
_SUBNET = "198.18.{}"
"""Of the range that is set aside for measurements between networks."""

# Ray's files of other runs are not to be seen. `ip netns exec` gives it mounts of its own.
_ENTER = 'mkdir -p /tmp/ray && mount --bind "$0" /tmp/ray && exec "$@"'


class Host:
    """A namespace with an address; commands run in it are this host's processes."""

    def __init__(self, name: str, link: str, address: str) -> None:
        """`link` is the bridge's end of its cable."""
        self.name = name
        self.address = address
        self._link = link
        # Short, for the names of sockets in it.
        self.directory = Path(tempfile.mkdtemp(prefix="h-"))

    def start(
        self, command: Sequence[str], output: Path, environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Start a command; what it prints goes to `output`, its errors beside it (`.err`)."""
        ray = self.directory / "ray"
        ray.mkdir(exist_ok=True)
        with output.open("wb") as out, output.with_suffix(".err").open("wb") as err:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "sh", "-c", _ENTER, str(ray), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=os.environ | self.environment | environment,
                start_new_session=True,
            )

    @property
    def environment(self) -> dict[str, str]:
        """Where its processes put their files."""
        return {"TMPDIR": str(self.directory), "XDG_RUNTIME_DIR": str(self.directory)}

    def processes(self) -> list[psutil.Process]:
        """Those that live."""
        return _processes(self.name)

    def kill(self) -> None:
        """End all its processes at once, as a loss of power does."""
        _kill_all(self.name)

    def clear(self) -> None:
        """Empty its disk."""
        for path in self.directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def cut(self) -> None:
        """Pull its cable: nothing comes or goes, and nobody is told."""
        _ip("link", "set", self._link, "down")

    def mend(self) -> None:
        """Put the cable in again."""
        _ip("link", "set", self._link, "up")

    def listening(self) -> set[tuple[str, int]]:
        """Addresses and ports at which its processes listen; * stands for all addresses."""
        table = _ip("netns", "exec", self.name, "ss", "-H", "--listening", "--tcp", "--numeric")
        # Such as [::ffff:198.18.0.1]:80, where the socket is one for IPv6.
        local = (
            line.split()[3].replace("[::ffff:", "").replace("]", "") for line in table.splitlines()
        )
        return {(host, int(port)) for host, _, port in (text.rpartition(":") for text in local)}

    def remove(self) -> None:
        """End what it runs, and it."""
        self.kill()
        _ip("netns", "delete", self.name)
        shutil.rmtree(self.directory, ignore_errors=True)


@contextmanager
def connected_hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other, and that this process reaches."""
    _remove_stale()
    mark = f"{_PREFIX}{os.getpid()}"
    subnet = _free_subnet()
    hosts: list[Host] = []
    try:
        _ip("link", "add", mark, "type", "bridge")
        _ip("address", "add", f"{subnet}.254/24", "dev", mark)
        _ip("link", "set", mark, "up")
        for number in range(1, count + 1):
            hosts.append(_connected(f"{mark}-{number}", mark, f"{subnet}.{number}"))
        yield hosts
    finally:
        for host in hosts:
            host.remove()
        _remove(mark)


def _connected(name: str, bridge: str, address: str) -> Host:
    """A host whose cable ends at the bridge."""
    _ip("netns", "add", name)
    _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    _ip("link", "set", name, "master", bridge, "up")
    _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip("-n", name, "link", "set", device, "up")
    return Host(name, name, address)


def check_namespaces() -> None:
    """Raise PermissionError or FileNotFoundError, with a reason, where there can be no hosts."""
    if os.geteuid() != 0:
        raise PermissionError("network namespaces need root")
    if shutil.which("ip") is None:
        raise FileNotFoundError("no ip command: install iproute2")
    name = f"{_PREFIX}-check-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "sh", "-c", _ENTER, tempfile.gettempdir(), "true")
    except subprocess.CalledProcessError as error:
        raise PermissionError(f"no network namespaces here: {error.stderr.strip()}") from error
    finally:
        _remove(name)


def _free_subnet() -> str:
    taken = _ip("-oneline", "address", "show")
    for number in range(256):
        if (subnet := _SUBNET.format(number)) + "." not in taken:
            return subnet
    raise OSError("all subnets of 198.18.0.0/16 are in use here")


def _remove_stale() -> None:
    """What test runs have left that were killed."""
    namespaces = [line.split()[0] for line in _ip("netns", "list").splitlines()]
    links = [line.split()[1] for line in _ip("-oneline", "link", "show").splitlines()]
    for name in namespaces + [link.rstrip(":").partition("@")[0] for link in links]:
        pid = name.partition("-")[0].removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and pid.isdecimal() and not psutil.pid_exists(int(pid)):
            if name in namespaces:
                _kill_all(name)
            _remove(name)


def _kill_all(namespace: str) -> None:
    """End what runs in it, also what is being started."""
    while found := _processes(namespace):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1.0)


def _processes(namespace: str) -> list[psutil.Process]:
    """Those that live in it."""
    found = []
    try:
        pids = _ip("netns", "pids", namespace)
    except subprocess.CalledProcessError:
        return []  # a run that was killed may have left a name without a namespace
    for pid in pids.split():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(pid))
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _remove(name: str) -> None:
    """The namespace, the cable, the bridge of this name; harmless if there is none."""
    for kind in ("netns", "link"):
        subprocess.run(["ip", kind, "delete", name], check=False, capture_output=True)


def _ip(*arguments: str) -> str:
    """Raises CalledProcessError."""
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout
