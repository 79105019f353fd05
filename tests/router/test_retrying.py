"""A request that no replica has begun is tried elsewhere."""

import asyncio

import grpc
import pytest
from trunkline.internal.v1 import replica_pb2 as internal

from cluster.registry import Registry
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, detail_of, running_router, tokens_of

REFUSED = Script(fail_with=internal.Failed(cause=internal.Failed.CAUSE_REFUSED))


async def two_replicas(make: ReplicaMaker, client: Client) -> list[FakeReplica]:
    replicas = [await make("replica-a"), await make("replica-b")]
    await client.until_ready(2)
    return replicas


async def test_lost_before_the_first_token_is_tried_elsewhere(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, policy="round_robin") as client:
        first, second = await two_replicas(make_replica, client)
        first.script = Script(pause_after=0)
        call = asyncio.create_task(client.generate())
        await first.until(lambda r: len(r.submits) == 1)
        await first.kill()
        assert tokens_of(await call) == [10, 11, 12, 13]
        assert len(second.submits) == 1
        assert second.submits[0].sampling.seed == first.submits[0].sampling.seed


async def test_a_new_incarnation_takes_over_from_the_only_replica(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    replica.script = Script(pause_after=0)
    call = asyncio.create_task(client.generate())
    await replica.until(lambda r: len(r.submits) == 1)
    await replica.kill()
    await replica.unregister()
    successor = await make_replica("replica-0")
    assert tokens_of(await call) == [10, 11, 12, 13]
    assert len(successor.submits) == 1


async def test_refused_is_tried_elsewhere(registry: Registry, make_replica: ReplicaMaker) -> None:
    async with running_router(registry, policy="round_robin") as client:
        first, second = await two_replicas(make_replica, client)
        first.script = REFUSED
        for _ in range(4):
            assert tokens_of(await client.generate()) == [10, 11, 12, 13]
        assert first.submits
        assert len(second.submits) == 4


async def test_refused_by_all_is_queue_full(client: Client, replica: FakeReplica) -> None:
    replica.script = REFUSED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    detail = detail_of(caught.value)
    assert (detail.reason, detail.retry_after.seconds) == ("QUEUE_FULL", 1)
    assert len(replica.submits) == 1


async def test_attempts_are_limited(registry: Registry, make_replica: ReplicaMaker) -> None:
    stopping = internal.Failed(cause=internal.Failed.CAUSE_CANCELLED)
    async with running_router(registry, max_attempts=2) as client:
        replicas = [*await two_replicas(make_replica, client), await make_replica("replica-c")]
        await client.until_ready(3)
        for replica in replicas:
            replica.script = Script(fail_with=stopping)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate()
        assert detail_of(caught.value).reason == "REPLICA_LOST"
        assert sum(len(replica.submits) for replica in replicas) == 2


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (internal.Failed.CAUSE_INVALID, grpc.StatusCode.INVALID_ARGUMENT),
        (internal.Failed.CAUSE_DEADLINE, grpc.StatusCode.DEADLINE_EXCEEDED),
        (internal.Failed.CAUSE_INTERNAL, grpc.StatusCode.INTERNAL),
    ],
)
async def test_what_is_wrong_with_the_request_is_told_at_once(
    client: Client,
    replica: FakeReplica,
    cause: internal.Failed.Cause.ValueType,
    code: grpc.StatusCode,
) -> None:
    replica.script = Script(fail_with=internal.Failed(cause=cause, message="because"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate()
    assert (caught.value.code(), caught.value.details()) == (code, "because")
    assert len(replica.submits) == 1


async def test_the_field_that_a_replica_objects_to_is_passed_on(
    client: Client, replica: FakeReplica
) -> None:
    failed = internal.Failed(
        cause=internal.Failed.CAUSE_INVALID, message="m", field="n", value="9", accepted="at most 8"
    )
    replica.script = Script(fail_with=failed)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate()
    detail = detail_of(caught.value)
    assert (detail.field, detail.value, detail.accepted) == ("n", "9", "at most 8")
