"""The head of a cluster that other machines join: Ray at an address of this one."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

from cluster.ray_environment import prepare_shared
from cluster.ray_node import NodeSpec, RayNode
from cluster.settings import Settings
from ops.failure import CommandError
from ops.join_token import make_token, write_token

_STOP_TIMEOUT_S = 10.0
_ONLY_HERE = {None, "localhost", "127.0.0.1", "::1"}


class Head:
    """Ray's head; `start`, `watch`, and in any case `stop`. For the main thread's event loop."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        """`settings` with ray.node_address; `directory` private to the user."""
        from workers.engine.cpus import usable_cpus

        ray = settings.ray
        assert ray.node_address is not None, "what makes it a head"
        self._port = ray.port
        self._token_file = directory / "join-token"
        self.node_address = ray.node_address
        self.address = f"{ray.node_address}:{ray.port}"
        spec = NodeSpec(
            is_head=True,
            head=self.address,
            address=ray.node_address,
            num_cpus=usable_cpus() if ray.num_cpus is None else ray.num_cpus,
            object_store_bytes=ray.object_store_bytes,
            directory=directory / "ray",
            drain_timeout_s=settings.replica.drain_timeout_s,
        )
        self._node = RayNode(spec, directory / "ray.log")

    @property
    def join_command(self) -> str:
        """What adds another machine, once it has the token's file."""
        return f"trunkline node --join {self.address} --token-file {self._token_file}"

    async def start(self) -> None:
        """Start it; this process and its children then have the token.

        Raises JoinError, ValueError if the port is in use, and UsageError if the environment has a
        token that is none.
        """
        # Ray's servers take all interfaces, whatever address they announce.
        _require_free("", self._port, "ray.port")
        token = make_token()
        write_token(self._token_file, token)
        prepare_shared(token)
        await self._node.start()

    async def watch(self) -> None:
        """Raise CommandError when it has ended, for nothing can go on then."""
        raise CommandError(await self._node.wait_lost())

    async def stop(self) -> None:
        """End it; harmless if it has ended."""
        await self._node.stop(_STOP_TIMEOUT_S)


def check_addresses(settings: Settings) -> None:
    """Raise ValueError, which names the field, if other machines could not find this one."""
    ray = settings.ray
    if ray.node_address is None:
        return
    if ray.address is not None:
        raise ValueError(
            f"ray.node_address: got {ray.node_address} beside ray.address {ray.address}, expected "
            "only one of them: where a head is started, or where one runs"
        )
    require_own(ray.node_address, "ray.node_address")
    _require_shared(settings.redis.url, "redis.url")
    for one in settings.each_model:
        _require_shared(one.engine.redis_cache.url, "engine.redis_cache.url")


def _require_shared(redis_url: str | None, field: str) -> None:
    if redis_url is not None and (host := urlsplit(redis_url).hostname) in _ONLY_HERE:
        got = host or "a socket file"
        raise ValueError(f"{field}: got {got}, expected a server that other machines reach too")


def own_address_towards(host: str, port: int) -> str:
    """The address of the interface that leads there. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port))  # sends nothing
        return str(probe.getsockname()[0])


def require_own(address: str, field: str) -> None:
    """Raise ValueError, which names the field, if it is no address of this machine."""
    try:
        _bind(address, 0)
    except OSError as error:
        raise ValueError(
            f"{field}: got {address}, expected an address of this machine ({error})"
        ) from error


def _require_free(address: str, port: int, field: str) -> None:
    try:
        _bind(address, port)
    except OSError as error:
        raise ValueError(f"{field}: got {port}, expected a free port ({error})") from error


def _bind(address: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
