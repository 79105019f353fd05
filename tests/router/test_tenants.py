"""What tenants share and what they do not, through a whole router."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
from redis.asyncio import Redis
from trunkline import AsyncClient, OverloadedError, RetryPolicy
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.registry import Registry
from cluster.tenants import Tenant, TenantLimits, TenantStore
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, detail_of, eventually, running_router

Metadata = list[tuple[str, str | bytes]]


@pytest.fixture
def store(redis: Redis, namespace: str) -> TenantStore:
    return TenantStore(redis, namespace)


async def join(store: TenantStore, name: str, **fields: object) -> Metadata:
    """A new tenant; returns what its calls bring along."""
    tenant = Tenant.model_validate({"name": name, **fields})
    await store.add(tenant)
    return [("authorization", f"Bearer {await store.add_key(tenant)}")]


async def has_replica(client: Client) -> bool:
    return client.metric("trunkline:replicas_ready", model="tiny") == 1.0


@pytest.fixture
async def guarded(registry: Registry, replica: FakeReplica) -> AsyncIterator[Client]:
    async with running_router(registry, require_api_key=True) as client:
        await eventually(lambda: has_replica(client))
        yield client


async def generate(client: Client, metadata: Metadata, prompt: str = "x") -> None:
    request = pb.GenerateRequest(prompt=prompt)
    assert [message async for message in client.stub.Generate(request, metadata=metadata)]


async def test_a_used_up_quota_is_told_over_both_protocols(
    guarded: Client, store: TenantStore
) -> None:
    metadata = await join(store, "a", limits=TenantLimits(requests_per_minute=2))
    for _ in range(2):
        await generate(guarded, metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await generate(guarded, metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert detail_of(caught.value).reason == "QUOTA_EXCEEDED"
    assert 0 < detail_of(caught.value).retry_after.ToMilliseconds() <= 60_250
    key = str(metadata[0][1]).removeprefix("Bearer ")
    once = RetryPolicy(max_attempts=1)
    async with AsyncClient(guarded.addresses["grpc"], api_key=key, retry=once) as client:
        with pytest.raises(OverloadedError) as refused:
            await client.generate("x").text()
    assert refused.value.reason == "QUOTA_EXCEEDED"
    async with httpx.AsyncClient(base_url=f"http://{guarded.addresses['http']}") as http:
        headers = {"authorization": f"Bearer {key}"}
        answer = await http.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 61
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    refusals = guarded.metric(
        "trunkline:requests_refused_total", tenant="a", reason="QUOTA_EXCEEDED"
    )
    assert refusals == 3


async def test_replicas_are_told_of_requests_that_make_way_for_others(
    guarded: Client, store: TenantStore, replica: FakeReplica
) -> None:
    """One of a tenant with far more under way than another that was here of late."""
    modest, flood = [await join(store, name) for name in ("modest", "flood")]
    await generate(guarded, modest)
    replica.script.pause_after = 0
    requests = [asyncio.create_task(generate(guarded, flood)) for _ in range(3)]
    await replica.until(lambda r: len(r.submits) == 4)
    requests.append(asyncio.create_task(generate(guarded, modest)))
    await replica.until(lambda r: len(r.submits) == 5)
    assert [submit.yields for submit in replica.submits] == [False, False, True, True, False]
    replica.resume.set()
    await asyncio.gather(*requests)


async def test_places_are_given_back_by_clients_that_leave_and_requests_that_fail(
    guarded: Client, store: TenantStore, replica: FakeReplica
) -> None:
    metadata = await join(store, "a", limits=TenantLimits(max_concurrency=1))
    replica.script = Script(pause_after=1)
    call = guarded.stub.Generate(pb.GenerateRequest(prompt="x"), metadata=metadata)
    await anext(aiter(call))
    with pytest.raises(grpc.aio.AioRpcError):
        await generate(guarded, metadata)
    call.cancel()
    await replica.until(lambda replica: bool(replica.cancels))
    internal_error = internal.Failed(cause=internal.Failed.CAUSE_INTERNAL)
    replica.script = Script(fail_with=internal_error)

    async def fails_at_the_replica() -> bool:
        """Once the place is free again, which is not waited for."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(guarded, metadata)
        return caught.value.code() is grpc.StatusCode.INTERNAL

    await eventually(fails_at_the_replica)
    replica.script = Script()

    async def succeeds() -> bool:
        try:
            await generate(guarded, metadata)
        except grpc.aio.AioRpcError as error:
            if detail_of(error).reason != "QUOTA_EXCEEDED":
                raise
            return False
        return True

    await eventually(succeeds)


async def test_requests_wait_at_the_router_while_the_replica_is_full(
    registry: Registry, replica: FakeReplica
) -> None:
    """Two may run there and one wait; the others come as those before them end."""
    replica.load.max_running_sequences = 2
    replica.script = Script(pause_after=0)
    async with running_router(registry) as client:
        await client.until_ready(1)
        calls = [asyncio.create_task(client.generate()) for _ in range(10)]
        await replica.until(lambda replica: len(replica.submits) == 3)
        await eventually(lambda: waits(client, 7))
        assert len(replica.submits) == 3
        replica.resume.set()
        assert all(await asyncio.gather(*calls))
        assert len(replica.submits) == 10
        assert await waits(client, 0)
        assert client.metric("trunkline:queue_wait_seconds_count", model="tiny") == 10


async def waits(client: Client, requests: int) -> bool:
    return client.metric("trunkline:queue_length", model="tiny") == requests


async def test_a_flood_of_one_tenant_does_not_hold_up_another(
    registry: Registry, replica: FakeReplica, store: TenantStore
) -> None:
    """Forty requests wait when the other's four come, which are served among the next ones."""
    flood, other = await join(store, "flood"), await join(store, "other")
    salt = await salt_of(store, "other")
    replica.load.max_running_sequences = 2
    replica.script = Script(pause_after=0)
    async with running_router(registry, require_api_key=True) as client:
        await eventually(lambda: has_replica(client))
        calls = [asyncio.create_task(generate(client, flood)) for _ in range(43)]
        await eventually(lambda: waits(client, 40))
        calls += [asyncio.create_task(generate(client, other)) for _ in range(4)]
        await eventually(lambda: waits(client, 44))
        replica.resume.set()
        await asyncio.gather(*calls)
    places = [i for i, submit in enumerate(replica.submits) if submit.cache_salt == salt]
    assert len(places) == 4
    assert places[-1] < 20


@pytest.mark.parametrize(("queue", "num_before"), [("fair", 16), ("fcfs", 40)])
async def test_a_tenant_that_was_here_of_late_is_next_at_a_replica_that_a_flood_fills(
    registry: Registry, replica: FakeReplica, store: TenantStore, queue: str, num_before: int
) -> None:
    """Sixteen may run there and three wait: under `fair`, none of the flood waits there."""
    flood, other = await join(store, "flood"), await join(store, "other")
    salt = await salt_of(store, "other")
    replica.load.max_running_sequences = 16
    async with running_router(registry, require_api_key=True, queue=queue) as client:
        await eventually(lambda: has_replica(client))
        await generate(client, other)
        replica.script = Script(pause_after=0)
        calls = [asyncio.create_task(generate(client, flood)) for _ in range(40)]
        num_waiting = 24 if queue == "fair" else 21
        await eventually(lambda: waits(client, num_waiting))
        calls.append(asyncio.create_task(generate(client, other)))
        num_waiting += queue == "fcfs"
        await replica.until(lambda replica: len(replica.submits) == 1 + 41 - num_waiting)
        await eventually(lambda: waits(client, num_waiting))
        replica.resume.set()
        await asyncio.gather(*calls)
    places = [i for i, submit in enumerate(replica.submits) if submit.cache_salt == salt]
    assert places == [0, 1 + num_before]


async def salt_of(store: TenantStore, name: str) -> bytes:
    tenant = await store.get(name)
    assert tenant is not None
    return tenant.cache_salt


async def test_one_that_waits_leaves_with_its_client(
    registry: Registry, replica: FakeReplica
) -> None:
    replica.load.max_running_sequences = 1
    replica.script = Script(pause_after=0)
    async with running_router(registry) as client:
        await client.until_ready(1)
        first = [asyncio.create_task(client.generate()) for _ in range(2)]
        await replica.until(lambda replica: len(replica.submits) == 2)
        waiting = client.stub.Generate(pb.GenerateRequest(prompt="x"))
        await eventually(lambda: waits(client, 1))
        waiting.cancel()
        await eventually(lambda: waits(client, 0))
        replica.resume.set()
        assert all(await asyncio.gather(*first))
    assert len(replica.submits) == 2


async def test_a_router_that_drains_sends_away_those_that_wait(
    registry: Registry, replica: FakeReplica
) -> None:
    """Those at a replica finish."""
    replica.load.max_running_sequences = 1
    replica.script = Script(pause_after=0)
    async with running_router(registry) as client:
        await client.until_ready(1)
        calls = [asyncio.create_task(client.generate()) for _ in range(3)]
        await eventually(lambda: waits(client, 1))
        client.stop()
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await done.pop()
        assert detail_of(caught.value).reason == "SHUTTING_DOWN"
        replica.resume.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(answer, list) for answer in answers) == 2


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_client_that_reads_nothing_holds_up_nobody(
    registry: Registry, replica: FakeReplica, protocol: str
) -> None:
    """Neither those that run beside it nor, once it has left, those that wait for its place."""
    replica.load.max_running_sequences = 64
    replica.script = Script(answer=[300] * 400)
    async with running_router(registry) as client, httpx.AsyncClient() as http:
        await client.until_ready(1)
        if protocol == "grpc":
            options = pb.RequestOptions(n=64)
            slow = client.stub.Generate(pb.GenerateRequest(prompt="x", options=options))
            await replica.until(lambda replica: len(replica.submits) == 1)
            assert await asyncio.gather(*(client.generate() for _ in range(12)))
            slow.cancel()
        else:
            body = {"prompt": "x", "stream": True, "max_tokens": 400, "n": 64}
            url = f"http://{client.addresses['http']}/v1/completions"
            async with http.stream("POST", url, json=body):
                await replica.until(lambda replica: len(replica.submits) == 1)
                assert await asyncio.gather(*(client.generate() for _ in range(12)))
        assert await client.generate()
        await eventually(lambda: waits(client, 0))
