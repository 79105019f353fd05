"""A router that is told to end: what runs finishes, what is new is refused, another one follows.

Also where it is killed."""

import asyncio

import httpx
import psutil
import pytest
from trunkline import AsyncClient, FinishReason, RetryPolicy, UnavailableError

from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually


async def test_sigterm(cluster: Cluster) -> None:
    router = cluster.router()
    async with AsyncClient(cluster.grpc, retry=RetryPolicy(max_attempts=1)) as client:
        running = client.generate("x", max_tokens=600, ignore_eos=True)
        num_tokens = len((await anext(running)).token_ids)
        router.terminate()
        await eventually(lambda: is_draining(cluster), "the router drains")
        with pytest.raises(UnavailableError):
            await client.generate("x", max_tokens=1).text()
        async with httpx.AsyncClient(base_url=cluster.http) as http:
            refused = await http.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        async for delta in running:
            num_tokens += len(delta.token_ids)
        assert delta.finish_reason is FinishReason.LENGTH
        assert num_tokens == 600
        assert running.usage.completion_tokens == 600
    await eventually(lambda: has_ended(router), "the router ends")
    await eventually(lambda: serves_again(cluster), "another router serves at the same address")
    assert cluster.router().pid != router.pid


async def test_sigkill(cluster: Cluster) -> None:
    router = cluster.router()
    router.kill()
    await eventually(lambda: has_ended(router), "the router ends")
    await eventually(lambda: serves_again(cluster), "another router serves at the same address")
    done = await asyncio.to_thread(cluster.command, "generate", "x", "--max-tokens", "1")
    assert (done.returncode, done.stderr) == (0, "")


async def is_draining(cluster: Cluster) -> bool:
    async with httpx.AsyncClient(base_url=cluster.http) as http:
        return (await http.get("/readyz")).status_code == 503


async def has_ended(process: psutil.Process) -> bool:
    return not process.is_running()


async def serves_again(cluster: Cluster) -> bool:
    try:
        async with httpx.AsyncClient(base_url=cluster.http) as http:
            return (await http.get("/readyz")).status_code == 200 and await cluster.num_ready() == 2
    except httpx.TransportError:
        return False
