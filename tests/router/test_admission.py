"""What cannot be served is refused at once, with a reason and a time to come back."""

import grpc
import pytest
from trunkline.v1 import inference_pb2 as pb

from cluster.registry import Registry
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, detail_of, running_router


async def refusal(client: Client, **options: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.generate(**options)  # type: ignore[arg-type]
    return caught.value


async def test_over_the_limit_is_refused_with_a_retry_after(
    registry: Registry, replica: FakeReplica
) -> None:
    replica.script = Script(pause_after=1)
    async with running_router(registry, max_in_flight=2, max_queued=0) as client:
        await client.until_ready(1)
        request = pb.GenerateRequest(prompt="x")
        streams = [aiter(client.stub.Generate(request)) for _ in range(2)]
        for stream in streams:
            await anext(stream)
        error = await refusal(client)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail_of(error).reason == "QUEUE_FULL"
        seconds = float(dict(error.trailing_metadata())["retry-after"])
        assert seconds == pytest.approx(detail_of(error).retry_after.ToNanoseconds() / 1e9)
        assert seconds > 0
        replica.resume.set()
        for stream in streams:
            assert [message async for message in stream]
        assert await client.generate()


async def test_without_a_ready_replica_the_wait_is_bounded(
    registry: Registry, replica: FakeReplica
) -> None:
    replica.load.draining = True
    async with running_router(registry, max_waiting_s=0.2) as client:
        await client.until_known()
        error = await refusal(client)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert detail_of(error).reason == "NO_REPLICA"


async def test_a_request_that_waits_is_served_when_a_replica_gets_ready(
    registry: Registry, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    replica.load.draining = True
    async with running_router(registry) as client:
        await client.until_known()
        call = client.stub.Generate(pb.GenerateRequest(prompt="x"))
        await make_replica("replica-1")
        assert [message async for message in call]


async def test_unknown_model_is_not_found(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.stub.Tokenize(pb.TokenizeRequest(model="other", text="x"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert detail_of(caught.value).accepted == "one of: tiny"


async def test_a_model_without_replicas_is_known_by_its_card(
    registry: Registry, replica: FakeReplica
) -> None:
    await replica.unregister()
    async with running_router(registry, max_waiting_s=0.1) as client:
        tokens = await client.stub.Tokenize(pb.TokenizeRequest(model="tiny", text="x"))
        assert tokens.token_ids
        error = await refusal(client)
        assert detail_of(error).reason == "NO_REPLICA"


async def test_before_any_model_is_known_clients_are_told_to_come_back(
    registry: Registry,
) -> None:
    async with running_router(registry) as client:
        error = await refusal(client)
        assert detail_of(error).reason == "NO_REPLICA"
        assert detail_of(error).HasField("retry_after")


async def test_a_message_over_the_size_limit_is_refused(
    registry: Registry, replica: FakeReplica
) -> None:
    async with running_router(registry, max_prompt_bytes=100_000) as client:
        await client.until_ready(1)
        error = await refusal(client, prompt="x" * 200_000)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not replica.submits
