"""Requests that nobody begins, and replicas that fail what they are sent."""

import asyncio

import grpc
import pytest
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.registry import Registry
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, detail_of, eventually, running_router, tokens_of

ANSWER = [10, 11, 12, 13]
BROKEN = internal.Failed(cause=internal.Failed.CAUSE_INTERNAL, message="broken")
REFUSED = internal.Failed(cause=internal.Failed.CAUSE_REFUSED)
STOPPING = internal.Failed(cause=internal.Failed.CAUSE_CANCELLED)


async def two_replicas(make: ReplicaMaker, client: Client) -> tuple[FakeReplica, FakeReplica]:
    first, second = await make("replica-a"), await make("replica-b")
    await client.until_ready(2)
    return first, second


async def test_an_overdue_request_is_sent_to_a_second_replica_and_the_first_to_answer_has_it(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, policy="round_robin", hedge_after_s=0.1) as client:
        first, second = await two_replicas(make_replica, client)
        first.script = Script(pause_after=0)
        assert tokens_of(await client.generate(n=2)) == ANSWER
        await first.until(lambda r: r.cancels == [r.submits[0].handle])
        [before], [after] = first.submits, second.submits
        assert (before.sampling.seed, before.n) == (after.sampling.seed, after.n)
        assert second.cancels == []
        assert client.metric("trunkline:dispatches_total", model="tiny", cause="hedge") == 1
        assert client.metric("trunkline:hedges_won_total", model="tiny") == 1


async def test_the_second_replica_is_cancelled_if_the_first_answers_after_all(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, policy="round_robin", hedge_after_s=0.1) as client:
        first, second = await two_replicas(make_replica, client)
        first.script = second.script = Script(pause_after=0)
        call = asyncio.create_task(client.generate())
        await second.until(lambda r: len(r.submits) == 1)
        first.resume.set()
        assert tokens_of(await call) == ANSWER
        await second.until(lambda r: r.cancels == [r.submits[0].handle])
        assert client.metric("trunkline:hedges_won_total", model="tiny") is None


@pytest.mark.parametrize("failed", [REFUSED, STOPPING])
async def test_while_one_of_the_two_is_left_the_request_goes_on(
    registry: Registry, make_replica: ReplicaMaker, failed: internal.Failed
) -> None:
    async with running_router(registry, policy="round_robin", hedge_after_s=0.1) as client:
        first, second = await two_replicas(make_replica, client)
        first.script = Script(pause_after=0)
        second.script = Script(fail_with=failed)
        call = asyncio.create_task(client.generate())
        await second.until(lambda r: len(r.submits) == 1)
        first.resume.set()
        assert tokens_of(await call) == ANSWER


async def test_what_has_begun_is_not_hedged_and_without_a_setting_nothing_is(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    for settings, pause_after in ({"hedge_after_s": 0.05}, 1), ({}, 0):
        async with running_router(registry, policy="round_robin", **settings) as client:
            first, second = await two_replicas(make_replica, client)
            first.script = second.script = Script(pause_after=pause_after)
            call = asyncio.create_task(client.generate())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(call), 0.3)
            assert len(first.submits) + len(second.submits) == 1
            first.resume.set()
            second.resume.set()
            assert tokens_of(await call) == ANSWER
        for replica in first, second:
            await replica.unregister()


async def test_a_client_that_leaves_is_cancelled_at_both_replicas(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, policy="round_robin", hedge_after_s=0.05) as client:
        first, second = await two_replicas(make_replica, client)
        first.script = second.script = Script(pause_after=0)
        call = client.stub.Generate(pb.GenerateRequest(prompt="x"))
        await second.until(lambda r: len(r.submits) == 1)
        call.cancel()
        for replica in first, second:
            await replica.until(lambda r: r.cancels == [r.submits[0].handle])


async def test_a_replica_that_fails_requests_gets_none_until_it_has_answered_one(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    settings = {"breaker_failures": 3, "breaker_cooldown_s": 0.5}
    async with running_router(registry, policy="round_robin", **settings) as client:
        bad, good = await two_replicas(make_replica, client)
        bad.script = Script(fail_with=BROKEN)
        codes = [await _outcome(client) for _ in range(6)]
        assert codes.count("INTERNAL") == len(bad.submits) == 3
        assert _num_breakers(client) == {"closed": 1, "half_open": 0, "open": 1}
        assert [await _outcome(client) for _ in range(4)] == [""] * 4
        assert len(bad.submits) == 3
        await eventually(lambda: _is_half_open(client))
        bad.script = Script()
        assert [await _outcome(client) for _ in range(4)] == [""] * 4
        assert len(bad.submits) > 3
        assert _num_breakers(client) == {"closed": 2, "half_open": 0, "open": 0}
        assert len(good.submits) > 3


async def test_requests_wait_for_a_half_open_breaker_where_there_is_no_other_replica(
    registry: Registry, replica: FakeReplica
) -> None:
    async with running_router(registry, breaker_failures=1, breaker_cooldown_s=0.3) as client:
        await client.until_ready(1)
        replica.script = Script(fail_with=BROKEN)
        assert await _outcome(client) == "INTERNAL"
        replica.script = Script()
        assert await client.num_ready() == 0
        assert await asyncio.gather(*(_outcome(client) for _ in range(5))) == [""] * 5


async def test_retries_wait_for_the_budget(registry: Registry, replica: FakeReplica) -> None:
    settings = {"retry_share": 0.0, "retry_burst": 1, "max_attempts": 1000, "max_waiting_s": 0.5}
    async with running_router(registry, retry_backoff_s=0.001, **settings) as client:
        await client.until_ready(1)
        replica.script = Script(fail_with=STOPPING)
        call = asyncio.create_task(client.generate())
        await replica.until(lambda r: len(r.submits) == 4)
        replica.script = Script()
        assert tokens_of(await call) == ANSWER


async def _outcome(client: Client) -> str:
    """The reason for which a request fails; nothing if it does not."""
    try:
        await client.generate()
    except grpc.aio.AioRpcError as error:
        return detail_of(error).reason
    return ""


def _num_breakers(client: Client) -> dict[str, float | None]:
    return {
        state: client.metric("trunkline:replica_breakers", model="tiny", state=state)
        for state in ("closed", "half_open", "open")
    }


async def _is_half_open(client: Client) -> bool:
    return _num_breakers(client)["half_open"] == 1
