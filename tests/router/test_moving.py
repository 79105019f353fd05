"""A request that has begun goes on at another replica, and its client sees nothing of it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from cluster.registry import Registry
from router.text.codec import TextCodec
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica, Script, logprob
from tests.router.harness import Client, detail_of, eventually, running_router, text_of, tokens_of

ANSWER = tuple(range(40, 60))
MOVED = internal.Failed(cause=internal.Failed.CAUSE_MOVED)
STOPPING = internal.Failed(cause=internal.Failed.CAUSE_CANCELLED)
REFUSED = internal.Failed(cause=internal.Failed.CAUSE_REFUSED)


@pytest.fixture
async def pair(
    registry: Registry, make_replica: ReplicaMaker
) -> AsyncIterator[tuple[Client, FakeReplica, FakeReplica]]:
    """A router that sends its first request to the first of two replicas."""
    changes: dict[str, Any] = {"policy": "round_robin", "retry_backoff_s": 0.001, "max_moves": 20}
    async with running_router(registry, **changes) as client:
        first, second = await make_replica("replica-a"), await make_replica("replica-b")
        await client.until_ready(2)
        yield client, first, second


def options(**changes: object) -> pb.RequestOptions:
    base = pb.RequestOptions(stop=sampling_pb2.StopConditions(max_tokens=len(ANSWER)))
    base.MergeFrom(pb.RequestOptions(**changes))  # type: ignore[arg-type]
    return base


async def moved(
    pair: tuple[Client, FakeReplica, FakeReplica], script: Script, **changes: object
) -> list[pb.GenerateResponse]:
    """All messages of a request that the first replica begins and fails as `script` says."""
    client, first, second = pair
    script.answer = second.script.answer = ANSWER
    script.spread = second.script.spread = 20
    first.script = script
    request = pb.GenerateRequest(prompt="hello", options=options(**changes))
    messages = [message async for message in client.stub.Generate(request)]
    assert len(first.submits) == 1
    return messages


def expected(index: int = 0) -> list[int]:
    return [token_id + 20 * index for token_id in ANSWER]


@pytest.mark.parametrize("cause", [MOVED, STOPPING])
@pytest.mark.parametrize("num_tokens", [1, 7, len(ANSWER) - 1])
async def test_what_a_replica_hands_back_goes_on_after_the_tokens_so_far(
    pair: tuple[Client, FakeReplica, FakeReplica], cause: internal.Failed, num_tokens: int
) -> None:
    messages = await moved(pair, Script(fail_with=cause, fail_after=num_tokens))
    assert tokens_of(messages) == expected()
    [before], [after] = pair[1].submits, pair[2].submits
    prompt = list(before.prompt_token_ids)
    assert list(after.prompt_token_ids) == prompt + expected()[:num_tokens]
    assert (after.num_generated, after.first_index, after.n) == (num_tokens, 0, 1)
    assert after.sampling == before.sampling
    assert after.stop == before.stop
    assert 0 < after.timeout_s <= before.timeout_s
    assert pair[0].metric("trunkline:dispatches_total", model="tiny", cause="moved") == 1


async def test_each_sample_goes_on_by_itself_but_for_those_that_have_ended(
    pair: tuple[Client, FakeReplica, FakeReplica], codec: TextCodec
) -> None:
    """One of them has ended by a stop string, of which replicas know nothing."""
    stop = sampling_pb2.StopConditions(stop_strings=[codec.decode(expected(1)[3:4])])
    messages = await moved(pair, Script(fail_with=MOVED, fail_after=6), n=3, stop=stop)
    assert [tokens_of(messages, i) for i in range(3)] == [expected(0), expected(1)[:4], expected(2)]
    after = sorted(pair[2].submits, key=lambda submit: submit.first_index)
    assert [(s.first_index, s.n, s.num_generated) for s in after] == [(0, 1, 6), (2, 1, 6)]


@pytest.mark.parametrize("num_tokens", range(5, 9))
async def test_a_stop_string_ends_a_sample_that_moves_in_its_middle(
    pair: tuple[Client, FakeReplica, FakeReplica], codec: TextCodec, num_tokens: int
) -> None:
    stop = codec.decode(expected()[5:8])
    conditions = sampling_pb2.StopConditions(max_tokens=len(ANSWER), stop_strings=[stop])
    messages = await moved(pair, Script(fail_with=MOVED, fail_after=num_tokens), stop=conditions)
    assert tokens_of(messages) == expected()[:8]
    assert text_of(messages) == codec.decode(expected()[:5])
    assert len(pair[2].submits) == (num_tokens < 8)


async def test_a_lost_replica_is_gone_on_from(
    pair: tuple[Client, FakeReplica, FakeReplica],
) -> None:
    client, first, second = pair
    first.script = Script(answer=ANSWER, pause_after=5)
    second.script = Script(answer=ANSWER)
    stream = aiter(client.stub.Generate(pb.GenerateRequest(prompt="x", options=options())))
    messages = [await anext(stream)]
    while len(tokens_of(messages)) < 5:
        messages.append(await anext(stream))
    await first.kill()
    messages += [message async for message in stream]
    assert tokens_of(messages) == expected()
    assert second.submits[0].num_generated == 5


async def test_a_stalled_replica_is_gone_on_from(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, policy="round_robin", stall_s=0.3) as client:
        first, second = await make_replica("replica-a"), await make_replica("replica-b")
        await client.until_ready(2)
        first.script = Script(answer=ANSWER, pause_after=5)
        second.script = Script(answer=ANSWER)
        assert tokens_of(await client.generate(stop=options().stop)) == expected()
        assert first.cancels == [first.submits[0].handle]
        assert second.submits[0].num_generated == 5


async def test_a_stalled_replica_is_waited_for_where_there_is_no_other(
    registry: Registry, replica: FakeReplica
) -> None:
    async with running_router(registry, stall_s=0.05) as client:
        await client.until_ready(1)
        replica.script = Script(answer=ANSWER, pause_after=5)
        call = asyncio.create_task(client.generate(stop=options().stop))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(call), 0.5)
        replica.resume.set()
        assert tokens_of(await call) == expected()
        assert len(replica.submits) == 1


@given(
    cut=st.integers(1, 6), per_output=st.integers(1, 3), n=st.integers(1, 3), repeats=st.booleans()
)
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_every_token_comes_once_however_often_a_request_moves(
    pair: tuple[Client, FakeReplica, FakeReplica], cut: int, per_output: int, n: int, repeats: bool
) -> None:
    """Replicas that all hand requests back after a few outputs, and send tokens again."""
    client, *replicas = pair
    for replica in replicas:
        replica.submits.clear()
        replica.script = Script(
            answer=ANSWER,
            spread=20,
            tokens_per_output=per_output,
            repeats=repeats,
            fail_with=MOVED,
            fail_after=cut,
        )
    request = pb.GenerateRequest(prompt="hello", options=options(n=n))
    messages = [message async for message in client.stub.Generate(request)]
    for index in range(n):
        assert tokens_of(messages, index) == expected(index)
    assert messages[-1].usage.completion_tokens == n * len(ANSWER)
    num_legs = -(-len(ANSWER) // (cut * per_output))
    legs = sorted((s.first_index, s.num_generated) for r in replicas for s in r.submits)
    assert len(legs) == 1 + n * (num_legs - 1), legs


async def test_usage_and_timings_are_those_of_the_original_prompt(
    pair: tuple[Client, FakeReplica, FakeReplica],
) -> None:
    pair[2].script.started = internal.Started(cached_prompt_tokens=9, queue_s=50.0)
    messages = await moved(pair, Script(fail_with=MOVED, fail_after=3))
    usage, timings = messages[-1].usage, messages[-1].timings
    assert usage.prompt_tokens == len(pair[1].submits[0].prompt_token_ids)
    assert (usage.cached_prompt_tokens, usage.completion_tokens) == (2, len(ANSWER))
    assert timings.queue.ToTimedelta() < timings.total.ToTimedelta()


async def test_prompt_logprobs_are_asked_for_once_and_logprobs_of_each_token_come_once(
    pair: tuple[Client, FakeReplica, FakeReplica],
) -> None:
    wanted = sampling_pb2.LogprobsOptions(top_logprobs=1, prompt_top_logprobs=0)
    messages = await moved(pair, Script(fail_with=MOVED, fail_after=3), logprobs=wanted)
    [before], [after] = pair[1].submits, pair[2].submits
    assert not after.logprobs.HasField("prompt_top_logprobs")
    assert after.logprobs.top_logprobs == 1
    scored = [p.token.token_id for m in messages for p in m.prompt_logprobs]
    assert scored == list(before.prompt_token_ids[1:])
    told = [p.token.token_id for m in messages for p in m.delta.logprobs]
    assert told == [logprob(token_id).token.token_id for token_id in expected()]


async def test_a_replica_that_leaves_out_a_token_is_left(
    pair: tuple[Client, FakeReplica, FakeReplica],
) -> None:
    messages = await moved(pair, Script(skip=4))
    assert tokens_of(messages) == expected()
    await pair[1].until(lambda r: r.cancels == [r.submits[0].handle])
    assert pair[2].submits[0].num_generated == 3


async def test_a_gap_everywhere_is_an_error_and_never_a_gap(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, max_moves=2, retry_backoff_s=0.001) as client:
        replica = await make_replica("replica-a")
        await client.until_ready(1)
        replica.script = Script(answer=ANSWER, skip=2)
        stream = aiter(client.stub.Generate(pb.GenerateRequest(prompt="x", options=options())))
        messages = [await anext(stream) for _ in range(3)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(stream)
        assert detail_of(caught.value).reason == "REPLICA_LOST"
        assert tokens_of(messages) == expected()[:3]
        assert [s.num_generated for s in replica.submits] == [0, 1, 2]


async def test_moves_are_limited(registry: Registry, make_replica: ReplicaMaker) -> None:
    async with running_router(registry, max_moves=3, retry_backoff_s=0.001) as client:
        for name in "ab":
            replica = await make_replica(f"replica-{name}")
            replica.script = Script(answer=ANSWER, fail_with=MOVED, fail_after=1)
        await client.until_ready(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.generate(stop=options().stop)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert client.metric("trunkline:dispatches_total", model="tiny", cause="moved") == 3


async def test_what_has_begun_waits_while_all_others_are_full(
    pair: tuple[Client, FakeReplica, FakeReplica],
) -> None:
    client, first, second = pair
    first.script = Script(answer=ANSWER, fail_with=MOVED, fail_after=3)
    second.script = Script(answer=ANSWER, fail_with=REFUSED)
    call = asyncio.create_task(client.generate(stop=options().stop))
    await second.until(lambda r: len(r.submits) == 3)
    second.script = Script(answer=ANSWER)
    assert tokens_of(await call) == expected()


async def test_the_deadline_is_kept_while_a_request_that_has_begun_waits(
    client: Client, replica: FakeReplica
) -> None:
    replica.script = Script(answer=ANSWER, pause_after=3)
    timeout = Duration(nanos=400_000_000)
    request = pb.GenerateRequest(prompt="x", options=options(timeout=timeout))
    stream = aiter(client.stub.Generate(request))
    await anext(stream)
    await replica.kill()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stream:
            pass
    assert detail_of(caught.value).reason == "DEADLINE_EXCEEDED"


async def test_a_client_that_leaves_while_its_request_moves_leaves_nothing(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    replica.script = Script(answer=ANSWER, pause_after=3)
    call = client.stub.Generate(pb.GenerateRequest(prompt="x", options=options()))
    await call.read()
    await replica.kill()
    await replica.unregister()
    await eventually(lambda: _num_ready(client, 0))
    call.cancel()
    await eventually(lambda: _in_flight(client, 0))
    successor = await make_replica("replica-0")
    await client.until_ready(1)
    await client.generate()
    assert len(successor.submits) == 1


async def _num_ready(client: Client, count: int) -> bool:
    return await client.num_ready() == count


async def _in_flight(client: Client, count: int) -> bool:
    return client.metric("trunkline:requests_in_flight") == count
