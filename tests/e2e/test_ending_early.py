"""Requests that nobody waits for, or whose time is over, free their blocks at once."""

import asyncio
import json

import httpx
import pytest
from trunkline import AsyncClient, Client, DeadlineExceededError, RequestCancelledError

from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually

LONG = {"max_tokens": 2000, "ignore_eos": True}


async def is_busy(cluster: Cluster) -> bool:
    return not await cluster.is_idle()


async def freed(cluster: Cluster) -> None:
    """Long before the request would have ended by itself, if only by its number of tokens."""
    await eventually(cluster.is_idle, "the request's blocks are free")


async def num_generated(cluster: Cluster) -> float:
    return sum(await cluster.metrics("generated_tokens"))


async def test_a_closed_stream(cluster: Cluster, client: Client) -> None:
    before = await num_generated(cluster)
    stream = client.generate("x", max_tokens=2000, ignore_eos=True)
    next(stream)
    assert await is_busy(cluster)
    stream.close()
    await freed(cluster)
    assert await num_generated(cluster) < before + 2000
    with pytest.raises(RequestCancelledError):
        list(stream)


async def test_a_closed_async_stream_with_samples(cluster: Cluster) -> None:
    before = await num_generated(cluster)
    async with AsyncClient(cluster.grpc) as client:
        async with client.generate("x", max_tokens=2000, ignore_eos=True, n=4) as stream:
            await anext(stream)
        await freed(cluster)
    assert await num_generated(cluster) < before + 8000


async def test_a_client_that_is_gone(cluster: Cluster) -> None:
    client = Client(cluster.grpc)
    next(client.generate("x", max_tokens=2000, ignore_eos=True))
    client.close()
    await freed(cluster)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_dropped_http_connection(cluster: Cluster, stream: bool) -> None:
    before = await num_generated(cluster)
    body = {"model": "demo", "prompt": "x", "stream": stream} | LONG
    request = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n"
    content = json.dumps(body)
    host, port = cluster.run.http_address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write((request.format(len(content)) + content).encode())
    await eventually(lambda: is_busy(cluster), "the request runs")
    writer.close()
    await freed(cluster)
    assert await num_generated(cluster) < before + 2000


async def test_a_passed_deadline(cluster: Cluster, client: Client) -> None:
    before = await num_generated(cluster)
    with pytest.raises(DeadlineExceededError):
        client.generate("x", timeout_s=0.5, max_tokens=2000, ignore_eos=True).text()
    await freed(cluster)
    assert await num_generated(cluster) < before + 2000


async def test_a_passed_deadline_over_http(cluster: Cluster) -> None:
    body = {"model": "demo", "prompt": "x", "timeout_s": 0.5} | LONG
    async with httpx.AsyncClient(base_url=cluster.http, timeout=None) as http:
        whole = await http.post("/v1/completions", json=body)
        streamed = await http.post("/v1/completions", json=body | {"stream": True})
    assert whole.status_code == 504
    assert whole.json()["error"]["code"] == "deadline_exceeded"
    *_, last = [line for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    await freed(cluster)
