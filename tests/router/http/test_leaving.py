"""A client that leaves takes its request along."""

import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from tests.router.http.fake_service import FakeService


def post(url: str, path: str, body: dict[str, object]) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("model", ["silent", "endless"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["ab", ["ab", "cd"]])
def test_the_request_is_closed_when_the_client_leaves(
    url: str, service: FakeService, model: str, stream: bool, prompt: str | list[str]
) -> None:
    """Whether tokens have been sent or not, and whether the answer is streamed or not."""
    service.waiting.clear()
    service.closed.clear()
    with post(url, "/v1/completions", {"model": model, "prompt": prompt, "stream": stream}):
        assert service.waiting.wait(timeout=60)
        assert not service.closed.is_set()
    assert service.closed.wait(timeout=60)


def test_leaving_in_the_middle_of_the_body_harms_nobody(url: str, http: httpx.Client) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
        )
    assert http.get("/healthz").status_code == 200


def test_the_request_of_a_client_that_stays_but_reads_nothing_is_closed(
    url: str, service: FakeService
) -> None:
    service.closed.clear()
    with post(url, "/v1/completions", {"model": "flood", "prompt": "ab", "stream": True}):
        assert service.closed.wait(timeout=60)
