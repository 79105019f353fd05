"""Prefixes in a Redis that `trunkline serve` starts for them: what one replica has computed,
another one has, for the same tenant."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
from trunkline import AsyncClient, RetryPolicy

from cluster.redis_client import connect
from cluster.tenants import Tenant, TenantStore
from tests.e2e.cluster import Cluster, serving
from tests.e2e.patience import eventually
from tests.e2e.settings import ENGINE

NUM_BLOCKS = 24
PREFIX_TOKENS = 16 * NUM_BLOCKS
PROMPT = [index * index % 251 for index in range(PREFIX_TOKENS)] + [7]
_WISHES: dict[str, Any] = {"max_tokens": 20, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def caching() -> Iterator[Cluster]:
    """One replica, and a cache of which nothing is said but its size; the last test ends it."""
    redis_cache = {"max_bytes": 256 * 1024 * 1024}
    settings = {
        "engine": ENGINE | {"redis_cache": redis_cache},
        "replica": {"count": 1},
        "router": {"require_api_key": True},
    }
    with serving("demo", settings) as cluster:
        yield cluster


@asynccontextmanager
async def joining(
    cluster: Cluster, name: str, group: str | None = None
) -> AsyncIterator[AsyncClient]:
    """A client of a new tenant."""
    tenant = Tenant(name=name, cache_group=group)
    async with connect(cluster.run.redis_url) as redis:
        store = TenantStore(redis, cluster.run.namespace)
        await store.add(tenant)
        key = str(await store.add_key(tenant))
    retry = RetryPolicy(max_attempts=1)
    async with AsyncClient(cluster.grpc, api_key=key, retry=retry) as client:
        yield client


async def test_a_new_replica_has_what_a_killed_one_computed(caching: Cluster) -> None:
    async with joining(caching, "a") as client:
        computed, num_cached = await _ask(client)
        assert num_cached == 0
        # What is asked for twice is written.
        assert await _ask(client) == (computed, PREFIX_TOKENS)
        await eventually(lambda: _blocks_are(caching, "written"), "the prefix is in Redis")

        [lost] = await caching.replicas()
        os.kill(lost.pid, signal.SIGKILL)
        await eventually(lambda: _is_replaced(caching, lost.pid), "the replica is replaced")
        assert await _ask(client) == (computed, PREFIX_TOKENS)
    assert await _blocks_are(caching, "fetched")
    assert await caching.metrics("tier_hit_tokens", tier="redis") == [PREFIX_TOKENS]


async def test_nothing_of_what_a_tenant_has_cached_is_found_by_another(caching: Cluster) -> None:
    """Nor, then, is anything told by a time to first token; but those of one group share."""
    async with (
        joining(caching, "one", "friends") as one,
        joining(caching, "other", "friends") as other,
        joining(caching, "stranger") as stranger,
    ):
        answers = [await _ask(client) for client in (one, one, other, stranger, stranger)]
    assert [num_cached for _, num_cached in answers] == [0, *[PREFIX_TOKENS] * 2, 0, PREFIX_TOKENS]
    assert len({tuple(tokens) for tokens, _ in answers}) == 1


async def test_requests_go_on_without_the_cache_which_comes_back(caching: Cluster) -> None:
    before = caching.redis_servers()
    [(socket, server)] = [(s, p) for s, p in before.items() if "/cache/" in s]
    server.kill()
    async with joining(caching, "b") as client:
        tokens, _ = await _ask(client)
        assert len(tokens) == _WISHES["max_tokens"]
    await eventually(lambda: _has_another(caching, socket, server), "the cache is started again")
    # The cluster's own is another server, which has seen nothing of it.
    others = before.keys() - {socket}
    assert [caching.redis_servers()[s].pid for s in others] == [before[s].pid for s in others]


def test_sigkill_takes_everything_with_it(caching: Cluster) -> None:
    """Both servers, too; and what is left of its files names no cluster that runs."""
    assert len(caching.processes()) > 5
    caching.process.kill()
    caching.wait_end()
    assert "no cluster runs" in caching.command("status").stderr


async def _ask(client: AsyncClient) -> tuple[list[int], int]:
    """An answer's tokens, and how many of the prompt's were cached."""
    stream = client.generate(PROMPT, **_WISHES)
    tokens = [token async for delta in stream for token in delta.token_ids]
    return tokens, stream.usage.cached_prompt_tokens


async def _blocks_are(cluster: Cluster, way: str) -> bool:
    return await cluster.metrics("tier_blocks", way=way) == [NUM_BLOCKS]


async def _is_replaced(cluster: Cluster, pid: int) -> bool:
    pids = {record.pid for record in await cluster.replicas()}
    return pid not in pids and await cluster.has_ready(1)


async def _has_another(cluster: Cluster, socket: str, server: psutil.Process) -> bool:
    found = (await asyncio.to_thread(cluster.redis_servers)).get(socket)
    return found is not None and found.pid != server.pid
