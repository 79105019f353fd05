"""A real HTTP server on loopback in front of a fake service."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import openai
import pytest
import uvicorn

from router.http.app import create_app
from router.metrics import Metrics
from tests.router.http.fake_service import FakeService

MAX_BODY_BYTES = 100_000
STALL_S = 1.0


class Server(uvicorn.Server):
    """uvicorn on a thread of its own."""

    def __init__(self, service: FakeService) -> None:
        app = create_app(service, Metrics(), max_body_bytes=MAX_BODY_BYTES, stall_s=STALL_S)
        super().__init__(uvicorn.Config(app, log_level="warning", lifespan="off"))
        self.ready = threading.Event()
        # asyncio turns Nagle's algorithm off only for sockets that name their protocol.
        self.listener = socket.socket(proto=socket.IPPROTO_TCP)
        self.listener.bind(("127.0.0.1", 0))

    @property
    def url(self) -> str:
        host, port = self.listener.getsockname()
        return f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=lambda: asyncio.run(self.serve([self.listener])))
        thread.start()
        self.ready.wait()
        try:
            yield
        finally:
            self.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="module")
def url(service: FakeService) -> Iterator[str]:
    server = Server(service)
    with server.running():
        yield server.url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client
