"""Nobody works for a client that has gone, or whose time is up."""

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

from cluster.registry import Registry
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, detail_of, eventually, running_router

SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
PAUSED = Script(answer=[20] * 100, pause_after=2)


def request(**options: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt="x", options=pb.RequestOptions(**options))  # type: ignore[arg-type]


async def test_a_cancelled_call_is_cancelled_in_the_engine(
    client: Client, replica: FakeReplica
) -> None:
    replica.script = PAUSED
    call = client.stub.Generate(request())
    await call.read()
    call.cancel()
    await replica.until(lambda r: r.cancels == [r.submits[0].handle])


async def test_a_client_that_never_reads_is_cancelled_in_the_engine(
    client: Client, replica: FakeReplica
) -> None:
    replica.script = Script(answer=[300] * 400, pause_after=300)
    call = client.stub.Generate(request(n=64))
    await replica.until(lambda r: len(r.submits) == 1)
    call.cancel()
    await replica.until(lambda r: r.cancels == [r.submits[0].handle])


async def test_a_client_that_takes_nothing_for_long_is_cancelled_in_the_engine(
    registry: Registry, replica: FakeReplica
) -> None:
    """It may be there still, and answer pings."""
    async with (
        running_router(registry, client_stall_s=0.5) as client,
        grpc.aio.insecure_channel(client.addresses["grpc"], SMALL_WINDOW) as channel,
    ):
        await client.until_ready(1)
        replica.script = Script(answer=[300] * 400, pause_after=300)
        call = InferenceStub(channel).Generate(request(n=64))
        await replica.until(lambda r: bool(r.cancels) and r.cancels == [r.submits[0].handle])
        await eventually(lambda: _in_flight(client, 0))
        call.cancel()


async def test_a_call_cancelled_while_it_waits_for_a_replica_leaves_nothing(
    client: Client, replica: FakeReplica
) -> None:
    replica.load.draining = True
    await client.until_ready(0)
    call = client.stub.Generate(request())
    await eventually(lambda: _in_flight(client, 1))
    call.cancel()
    await eventually(lambda: _in_flight(client, 0))
    replica.load.draining = False
    await client.generate()
    assert len(replica.submits) == 1


@pytest.mark.parametrize("pause_after", [0, 2])
async def test_the_requests_own_timeout_ends_it(
    client: Client, replica: FakeReplica, pause_after: int
) -> None:
    replica.script = Script(answer=[20] * 100, pause_after=pause_after)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(timeout=Duration(nanos=200_000_000))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert detail_of(caught.value).reason == "DEADLINE_EXCEEDED"
    await replica.until(lambda r: r.cancels == [r.submits[0].handle])


async def test_the_calls_deadline_ends_it(client: Client, replica: FakeReplica) -> None:
    replica.script = PAUSED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in client.stub.Generate(request(), timeout=0.3):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await replica.until(lambda r: r.cancels == [r.submits[0].handle])
    assert 0 < replica.submits[0].timeout_s < 10


async def test_the_deadline_counts_while_no_replica_is_ready(
    client: Client, replica: FakeReplica
) -> None:
    replica.load.draining = True
    await client.until_ready(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(timeout=Duration(nanos=100_000_000))
    assert detail_of(caught.value).reason == "DEADLINE_EXCEEDED"


async def test_what_has_ended_is_not_cancelled(client: Client, replica: FakeReplica) -> None:
    await client.generate()
    replica.script = PAUSED
    call = client.stub.Generate(request())
    await call.read()
    call.cancel()
    await replica.until(lambda r: bool(r.cancels))
    assert replica.cancels == [replica.submits[1].handle]


async def test_the_slots_of_cancelled_calls_are_free_again(
    client: Client, replica: FakeReplica
) -> None:
    replica.script = PAUSED
    calls = [client.stub.Generate(request()) for _ in range(10)]
    await asyncio.gather(*(call.read() for call in calls))
    for call in calls:
        call.cancel()
    await replica.until(lambda r: len(r.cancels) == 10)
    await eventually(lambda: _in_flight(client, 0))


async def _in_flight(client: Client, count: int) -> bool:
    return client.metric("trunkline:requests_in_flight") == count
