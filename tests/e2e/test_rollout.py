"""A rolling update, as an operator starts it, while clients go on."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from openai import AsyncOpenAI
from trunkline import AsyncClient, RetryPolicy

from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually

MAX_TOKENS = 40
LONG_TOKENS = 1500
"""Longer than new replicas take to start: these are the old one's to finish."""
NUM_CLIENTS = 6


@dataclass
class Load:
    """Clients that ask one question after the other until they are told to stop."""

    ask: Callable[[], Awaitable[str]]
    answers: list[str] = field(default_factory=list)
    stopping: bool = False

    async def run(self) -> None:
        """Raises whatever a request does."""
        while not self.stopping:
            self.answers.append(await self.ask())


async def test_no_request_fails(cluster: Cluster) -> None:
    await eventually(lambda: cluster.has_ready(2), "both replicas serve")
    old = {record.pid for record in await cluster.replicas()}
    # No client tries again: nobody may see that anything happens.
    async with (
        AsyncClient(cluster.grpc, retry=RetryPolicy(max_attempts=1)) as client,
        AsyncOpenAI(base_url=f"{cluster.http}/v1", api_key="none", max_retries=0) as openai,
    ):

        async def over_grpc() -> str:
            stream = client.generate("import", max_tokens=MAX_TOKENS, seed=2, ignore_eos=True)
            return await stream.text()

        async def over_http() -> str:
            stream = await openai.completions.create(
                model="demo",
                prompt="import",
                max_tokens=MAX_TOKENS,
                seed=2,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        long = client.generate("x", max_tokens=LONG_TOKENS, ignore_eos=True)
        await anext(long)
        loads = [Load(ask) for ask in (over_grpc, over_http) for _ in range(NUM_CLIENTS // 2)]
        running = [asyncio.create_task(load.run()) for load in loads]
        done = await asyncio.to_thread(cluster.command, "rollout")
        for load in loads:
            load.stopping = True
        await asyncio.gather(*running)
        async for _ in long:
            pass
    assert long.usage.completion_tokens == LONG_TOKENS
    assert (done.returncode, done.stderr) == (0, "")
    new = {record.pid for record in await cluster.replicas()}
    assert len(new) == 2
    assert not new & old
    assert cluster.leaders() == new
    assert all(load.answers for load in loads)
    assert len({answer for load in loads for answer in load.answers}) == 1


async def test_settings_that_cannot_be_served_are_rolled_back(cluster: Cluster) -> None:
    old = {record.pid for record in await cluster.replicas()}
    with cluster.changed_settings({"engine": {"block_size": -1}}):
        refused = await asyncio.to_thread(cluster.command, "rollout")
    assert refused.returncode == 1
    assert "engine.block_size: got -1" in refused.stderr
    assert {record.pid for record in await cluster.replicas()} == old
    with cluster.changed_settings({"engine": {"kv_cache_bytes": 1}}):
        failed = await asyncio.to_thread(cluster.command, "rollout")
    assert failed.returncode == 1
    assert "engine.kv_cache_bytes: got 1" in failed.stderr
    assert await cluster.has_ready(2)
    # What is lost after that is replaced.
    lost = (await cluster.replicas())[0]
    os.kill(lost.pid, signal.SIGKILL)
    await eventually(lambda: cluster.has_replaced(lost.pid), "the replica is replaced")
