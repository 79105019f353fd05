"""The HTTP server of a router: the OpenAI dialect, health and metrics, in the router's own loop."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from router.http.app import create_app
from router.inference import InferenceService
from router.metrics import Metrics

_FLUSH_S = 2


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to the process, which has more than this server to stop."""
        yield


class HttpServer:
    """Runs uvicorn with the router's app."""

    def __init__(
        self,
        service: InferenceService,
        metrics: Metrics,
        *,
        max_body_bytes: int,
        stall_s: float,
        shares_port: bool,
    ) -> None:
        """Where it `shares_port` with others, each gets some of the connections."""
        self._shares_port = shares_port
        self._server = _Server(
            uvicorn.Config(
                create_app(service, metrics, max_body_bytes=max_body_bytes, stall_s=stall_s),
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=_FLUSH_S,
            )
        )
        self._task: asyncio.Task[None] | None = None

    def start(self, host: str, port: int) -> int:
        """Listen, with port 0 on a free one; returns the port. Raises OSError if it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # TCP by name: asyncio turns Nagle's algorithm off only where it sees the protocol.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._shares_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(2048)
        self._task = asyncio.create_task(self._server.serve([listener]), name="http server")
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Take no connections any more, and give open responses a moment to get through."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
