"""The control channel: what a gang's leader and one other rank say to each other, over TCP.

A frame is a byte for its kind, four bytes for its length (network order), then that many bytes: a
JSON message, a step's plan as it lies in memory, or nothing at all, a heartbeat.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

import numpy as np
import structlog
from pydantic import ValidationError

from workers.engine.control_messages import AnyMessage, Message, parse

log = structlog.get_logger(__name__)

HEARTBEAT_S = 0.5
SILENCE_S = 3.0
"""Whoever sends nothing for this long counts as lost."""
MAX_MESSAGE_BYTES = 1024 * 1024
MAX_PLAN_BYTES = 256 * 1024 * 1024

_PLAN_ITEM_BYTES = 8
_HEADER = struct.Struct("!BI")

Plan = np.ndarray[tuple[int], np.dtype[np.int64]]


class FrameKind(IntEnum):
    """What a frame holds."""

    HEARTBEAT = 0
    MESSAGE = 1
    PLAN = 2


_LIMITS = {
    FrameKind.HEARTBEAT: 0,
    FrameKind.MESSAGE: MAX_MESSAGE_BYTES,
    FrameKind.PLAN: MAX_PLAN_BYTES,
}


class ChannelLost(Exception):  # noqa: N818 - it is news, not a mistake
    """The other end is gone, or sends what it must not."""


class ChannelSilent(ChannelLost):
    """The other end has said nothing for SILENCE_S; whether it lives is not known."""


class Channel:
    """One end of a connection. `send` and `send_plan` may be called from any thread.

    `receive` is for the time before `start`, which has a thread of its own read, and another one
    send heartbeats, until the channel is closed or lost.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def send(self, message: Message) -> None:
        """Send a message. Raises ChannelLost."""
        self._send(FrameKind.MESSAGE, message.model_dump_json().encode())

    def send_plan(self, plan: Plan) -> None:
        """Send a step's plan, int64 [N]. Raises ChannelLost."""
        self._send(FrameKind.PLAN, plan.data.cast("B"))

    def receive(self, limit: int = MAX_MESSAGE_BYTES) -> AnyMessage:
        """Wait for the next message, of no more than `limit` bytes. Raises ChannelLost."""
        while True:
            kind, payload = self._read_frame(limit, takes_plans=False)
            if kind is FrameKind.MESSAGE:
                return _parsed(payload)

    def start(
        self,
        on_message: Callable[[AnyMessage], None],
        on_plan: Callable[[Plan], None] | None,
        on_lost: Callable[[ChannelLost], None],
    ) -> None:
        """From now on, call these on the reading thread.

        `on_lost` is the last call, and says why; it comes for the other end's closing too, but not
        after `close` here. Plans for which there is no `on_plan` are a reason to be lost.
        """

        def read() -> None:
            try:
                while True:
                    self._deliver(on_message, on_plan)
            except ChannelLost as lost:
                end = lost
            except Exception as error:  # nobody else would notice
                log.exception("a message could not be taken")
                end = ChannelLost(f"what it said could not be taken: {error}")
            if not self._closed.is_set():
                on_lost(end)

        for name, run in (("control reader", read), ("control heartbeat", self._beat)):
            thread = threading.Thread(target=run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def hang_up(self) -> None:
        """Say no more, which the other end notices at once; what it says is still heard."""
        with suppress(OSError):  # the other end was quicker
            self._connection.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End the connection without waiting for whoever reads it or writes to it here."""
        self._closed.set()
        with suppress(OSError):  # the other end was quicker
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and what belongs to it. Again is fine."""
        self.cut()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._connection.close()

    def _deliver(
        self,
        on_message: Callable[[AnyMessage], None],
        on_plan: Callable[[Plan], None] | None,
    ) -> None:
        kind, payload = self._read_frame(MAX_MESSAGE_BYTES, takes_plans=on_plan is not None)
        if kind is FrameKind.MESSAGE:
            on_message(_parsed(payload))
        elif kind is FrameKind.PLAN and on_plan is not None:
            on_plan(np.frombuffer(payload, dtype=np.int64))

    def _beat(self) -> None:
        """A dead connection is for the reader to find."""
        with suppress(ChannelLost):
            while not self._closed.wait(HEARTBEAT_S):
                self._send(FrameKind.HEARTBEAT, b"")

    def _send(self, kind: FrameKind, payload: "bytes | memoryview[int]") -> None:
        if len(payload) > _LIMITS[kind]:
            raise ValueError(f"{kind.name}: {len(payload)} bytes, at most {_LIMITS[kind]} go")
        try:
            with self._sending:
                self._connection.sendall(_HEADER.pack(kind, len(payload)))
                self._connection.sendall(payload)
        except TimeoutError as error:
            raise ChannelSilent(f"it took nothing for {SILENCE_S:g} s") from error
        except OSError as error:
            raise ChannelLost(f"its connection has ended: {error}") from error

    def _read_frame(self, message_limit: int, *, takes_plans: bool) -> tuple[FrameKind, bytearray]:
        """The next frame; memory is only taken for what the header may announce."""
        number, length = _HEADER.unpack(self._read(_HEADER.size))
        try:
            kind = FrameKind(number)
        except ValueError as error:
            raise ChannelLost(f"frame of unknown kind {number}") from error
        if kind is FrameKind.PLAN and not takes_plans:
            raise ChannelLost("a plan came to one who does not take any")
        most = message_limit if kind is FrameKind.MESSAGE else _LIMITS[kind]
        if length > most:
            raise ChannelLost(f"{kind.name} of {length} bytes, at most {most} are taken")
        if kind is FrameKind.PLAN and length % _PLAN_ITEM_BYTES:
            raise ChannelLost(f"a plan of {length} bytes, which are no int64")
        return kind, self._read(length)

    def _read(self, length: int) -> bytearray:
        data = bytearray(length)
        rest = memoryview(data)
        while rest:
            try:
                count = self._connection.recv_into(rest)
            except TimeoutError as error:
                raise ChannelSilent(f"silent for {SILENCE_S:g} s") from error
            except OSError as error:
                raise ChannelLost(f"its connection has ended: {error}") from error
            if count == 0:
                raise ChannelLost("its connection has ended")
            rest = rest[count:]
        return data


def _parsed(payload: bytearray) -> AnyMessage:
    try:
        return parse(bytes(payload))
    except ValidationError as error:
        raise ChannelLost(f"a message that is none: {error.errors()[0]['msg']}") from error
