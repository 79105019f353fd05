"""A replica whose two pipeline stages are on two hosts.

One cluster for all tests, in their order. Each host has room for one rank.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from trunkline import AsyncClient, RetryPolicy, UnavailableError

from cluster.settings import EngineSettings
from ops.models import resolve
from tests.e2e.patience import eventually
from tests.e2e.settings import ENGINE
from tests.multinode.cluster import TwoHosts
from tests.multinode.hosts import Host
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

MAX_TOKENS = 24
PROMPTS = ["The list type", "def main():\n    ", "import", "A" * 300]
SETTINGS: dict[str, Any] = {
    "engine": ENGINE | {"parallel": {"pipeline": 2}},
    "replica": {"num_cpus": 1},
    "ray": {"num_cpus": 1},
    # What was under way finds no other replica, and does not wait long for one.
    "router": {"replica_silence_s": 3.0, "max_waiting_s": 5.0},
}


@pytest.fixture(scope="module")
def cluster(hosts: list[Host]) -> Iterator[TwoHosts]:
    yield TwoHosts(hosts, SETTINGS)
    for host in hosts:
        host.kill()


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What one rank says."""
    llm = LLM(resolve("demo-small"), EngineSettings(**ENGINE))
    greedy = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
    return [completion.samples[0].text for completion in llm.generate(PROMPTS, greedy)]


async def answers(cluster: TwoHosts) -> list[str]:
    async with AsyncClient(cluster.head.grpc) as client:
        streams = [
            client.generate(prompt, temperature=0.0, max_tokens=MAX_TOKENS) for prompt in PROMPTS
        ]
        return await asyncio.gather(*(stream.text() for stream in streams))


async def test_stages_on_two_hosts_say_what_one_rank_says(
    cluster: TwoHosts, expected: list[str]
) -> None:
    cluster.join()
    cluster.head.wait_ready()
    [record] = await cluster.head.replicas()
    [other] = {cluster.first.address, cluster.second.address} - {record.address.split(":")[0]}
    [shard_host] = [host for host in (cluster.first, cluster.second) if host.address == other]
    assert [p for p in shard_host.processes() if "Shard" in " ".join(p.cmdline())]
    assert await answers(cluster) == expected


async def test_when_a_stages_host_is_lost_requests_end_and_the_next_replica_serves(
    cluster: TwoHosts, expected: list[str]
) -> None:
    """Of the killed command nothing is left, neither the rank nor Ray."""
    before = await epoch(cluster)
    async with lost_request(cluster):
        cluster.node.process.kill()
        assert cluster.node.wait_end() < 0
    cluster.join()
    await eventually(lambda: serves_anew(cluster, before), "another replica serves")
    assert await answers(cluster) == expected


async def test_when_the_cable_between_stages_is_cut_the_same_happens(
    cluster: TwoHosts, expected: list[str]
) -> None:
    before = await epoch(cluster)
    async with lost_request(cluster):
        cluster.second.cut()
    cluster.second.mend()
    await eventually(lambda: serves_anew(cluster, before), "another replica serves")
    assert await answers(cluster) == expected


async def test_a_host_that_leaves_lets_requests_finish(cluster: TwoHosts) -> None:
    async with AsyncClient(cluster.head.grpc) as client:
        stream = client.generate("x", max_tokens=1500, ignore_eos=True)
        num_tokens = len((await anext(stream)).token_ids)
        leaving = asyncio.create_task(asyncio.to_thread(cluster.node.leave))
        async for delta in stream:
            num_tokens += len(delta.token_ids)
    assert num_tokens == 1500
    assert await leaving == 0


def test_the_head_ends_while_a_replica_waits_for_the_host(cluster: TwoHosts) -> None:
    assert cluster.head.leave() == 0


async def epoch(cluster: TwoHosts) -> int:
    [record] = await cluster.head.replicas()
    return record.epoch


async def serves_anew(cluster: TwoHosts, before: int) -> bool:
    return await cluster.head.has_ready(1) and await epoch(cluster) > before


@asynccontextmanager
async def lost_request(cluster: TwoHosts) -> AsyncIterator[None]:
    """A request that has begun; what happens in the block ends it, and nobody waits for long."""
    async with AsyncClient(cluster.head.grpc, retry=RetryPolicy(max_attempts=1)) as client:
        stream = client.generate("x", max_tokens=2000, ignore_eos=True, timeout_s=60.0)
        await anext(stream)
        yield
        with pytest.raises(UnavailableError):
            await stream.text()
