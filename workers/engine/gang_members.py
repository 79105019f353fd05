"""The ranks of a gang as its leader knows them: they come, load, and may be lost."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

import structlog

from workers.engine.cache_size import CacheSize
from workers.engine.control import Channel, ChannelLost
from workers.engine.control_hello import receive_hello
from workers.engine.control_messages import Hello
from workers.engine.redis_part import Outcome

log = structlog.get_logger(__name__)

_POLL_S = 0.1


class Member:
    """One rank besides the leader."""

    def __init__(self, hello: Hello, channel: Channel) -> None:
        self.hello = hello
        self.channel = channel
        self.progress = (0, 0)
        """Layers loaded, layers in all."""
        self.room: CacheSize | None = None
        """What it has room for, once it has loaded."""
        self.outcomes: dict[int, Outcome] = {}
        """Of errands by their numbers, until they are taken."""
        self.has_left = False
        """Whether its connection has ended."""

    def __str__(self) -> str:
        return f"rank {self.hello.rank} (process {self.hello.pid} on {self.hello.node})"


class Door:
    """Where the ranks of one gang come in, each of them once."""

    def __init__(
        self, node: str, token: str, world_size: int, welcome: Callable[[Member], None]
    ) -> None:
        """Listens at a free port of the address `node`; `welcome` is called once for each rank.

        Raises OSError.
        """
        self._token = token
        self._welcome = welcome
        self._expected = set(range(1, world_size))
        self._listener = socket.create_server((node, 0))
        self._listener.settimeout(_POLL_S)
        self._lock = threading.Lock()
        self._strangers: set[Channel] = set()
        self._greeting: list[threading.Thread] = []

    @property
    def address(self) -> str:
        """host:port"""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def wait(self, limit_s: float, check: Callable[[], None]) -> None:
        """Let all ranks in.

        Raises TimeoutError naming those that have not come in time, and what `check`, which is
        called again and again, raises.
        """
        end = monotonic() + limit_s
        while missing := self._missing():
            check()
            if monotonic() > end:
                names = ", ".join(map(str, sorted(missing)))
                raise TimeoutError(f"ranks {names} did not come within {limit_s:g} s")
            with suppress(TimeoutError):
                self._greet_apart(self._listener.accept()[0])

    def close(self) -> None:
        """Let nobody in any more; who has come in stays."""
        self._listener.close()
        with self._lock:
            for channel in self._strangers:
                channel.cut()
        for thread in self._greeting:
            thread.join()

    def _missing(self) -> set[int]:
        with self._lock:
            return set(self._expected)

    def _greet_apart(self, connection: socket.socket) -> None:
        """On a thread: strangers who say nothing must keep nobody waiting."""
        channel = Channel(connection)
        with self._lock:
            self._strangers.add(channel)
        thread = threading.Thread(target=self._greet, args=(channel,), daemon=True)
        self._greeting = [thread, *(t for t in self._greeting if t.is_alive())]
        thread.start()

    def _greet(self, channel: Channel) -> None:
        try:
            member = Member(receive_hello(channel, self._token), channel)
            self._let_in(member)
        except ChannelLost as lost:
            log.warning("a connection to the gang was refused", reason=str(lost))
            with self._lock:
                self._strangers.remove(channel)
            channel.close()

    def _let_in(self, member: Member) -> None:
        with self._lock:
            if member.hello.rank not in self._expected:
                raise ChannelLost(f"{member} is not expected, or has come before")
            self._strangers.remove(member.channel)
            self._welcome(member)
            self._expected.remove(member.hello.rank)
