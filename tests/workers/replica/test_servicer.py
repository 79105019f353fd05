"""The replica's stream over real gRPC: identity, ends, cancels, load, drain, death."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import (
    ReplicaServiceStub,
    add_ReplicaServiceServicer_to_server,
)
from trunkline.v1 import inference_pb2 as public
from trunkline.v1 import sampling_pb2 as sampling

from tests.workers.replica.fake_engine import POISON, FakeEngine
from workers.replica.dispatch import Dispatch
from workers.replica.engine_thread import EngineDied, EngineThread
from workers.replica.servicer import ReplicaServicer

IDENTITY = internal.ReplicaHello(replica_id="r", epoch=7)
Stream = grpc.aio.StreamStreamCall[internal.ConnectRequest, internal.ConnectResponse]


class Router:
    """The other end of a stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.frames: list[internal.ConnectResponse] = []

    async def send(
        self, *submits: internal.Submit, cancels: Sequence[int] = (), epoch: int | None = None
    ) -> None:
        hello = None if epoch is None else internal.RouterHello(replica_id="r", epoch=epoch)
        await self.stream.write(
            internal.ConnectRequest(hello=hello, submits=submits, cancels=cancels)
        )

    async def until(self, enough: Callable[["Router"], bool]) -> None:
        while not enough(self):
            frame = await self.stream.read()
            assert isinstance(frame, internal.ConnectResponse), "the stream has ended"
            self.frames.append(frame)

    @property
    def ends(self) -> dict[int, internal.RequestEnd]:
        ends = [end for frame in self.frames for end in frame.ends]
        assert len({end.handle for end in ends}) == len(ends), "a request has two ends"
        return {end.handle: end for end in ends}

    @property
    def loads(self) -> list[internal.Load]:
        return [frame.load for frame in self.frames if frame.HasField("load")]

    def tokens(self, handle: int, index: int = 0) -> list[int]:
        return [
            token
            for frame in self.frames
            for output in frame.outputs
            if (output.handle, output.index) == (handle, index)
            for token in output.token_ids
        ]


class Replica:
    """A servicer on a real server, with a fake engine behind it."""

    def __init__(self, engine: FakeEngine, stack: AsyncExitStack) -> None:
        self.engine = engine
        self._stack = stack
        self.thread = EngineThread(lambda: engine, on_step=lambda _: None)
        self.dispatch = Dispatch(self.thread, max_requests=100)
        self.servicer = ReplicaServicer(IDENTITY, self.dispatch, self.thread)

    async def start(self) -> None:
        died = EngineDied("the engine failed")
        await self.thread.start(
            on_report=self.dispatch.report, on_death=lambda: self.servicer.fail(died)
        )
        self._stack.push_async_callback(self.thread.stop)
        server = grpc.aio.server()
        add_ReplicaServiceServicer_to_server(self.servicer, server)
        self._port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._stack.push_async_callback(server.stop, None)
        reports = asyncio.create_task(self.servicer.report_load())
        self._stack.callback(reports.cancel)

    async def connect(self, epoch: int = 7) -> Router:
        channel = await self._stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{self._port}")
        )
        router = Router(ReplicaServiceStub(channel).Connect())
        await router.send(epoch=epoch)
        return router


@asynccontextmanager
async def _replica(engine: FakeEngine | None = None) -> AsyncIterator[Replica]:
    async with AsyncExitStack() as stack:
        replica = Replica(engine or FakeEngine(), stack)
        await replica.start()
        stack.callback(replica.engine.gate.set)
        yield replica


def _submit(handle: int, first: int = 1, max_tokens: int = 4, n: int = 1) -> internal.Submit:
    stop = sampling.StopConditions(max_tokens=max_tokens)
    return internal.Submit(handle=handle, prompt_token_ids=[first], stop=stop, n=n)


async def test_many_requests_of_many_routers_each_get_their_tokens_and_one_end() -> None:
    async with _replica() as replica:
        routers = [await replica.connect() for _ in range(3)]
        for number, router in enumerate(routers):
            # The same handles at every router: the engine must not mix them up.
            await router.send(*(_submit(h, first=100 * number + h, n=2) for h in range(20)))
        for number, router in enumerate(routers):
            await router.until(lambda r: len(r.ends) == 20)
            for handle in range(20):
                first = 100 * number + handle
                assert router.tokens(handle, 0) == [first + i for i in range(1, 5)]
                assert router.tokens(handle, 1) == router.tokens(handle, 0)
                assert router.ends[handle].HasField("finished")
            assert router.frames[0].hello == IDENTITY
            last = [o for frame in router.frames for o in frame.outputs][-1]
            assert last.finish_reason == public.FINISH_REASON_LENGTH


async def test_a_request_to_embed_gets_values_in_place_of_tokens_and_one_end() -> None:
    async with _replica() as replica:
        router = await replica.connect()
        await router.send(internal.Submit(handle=1, prompt_token_ids=[3, 5], embed=True))
        await router.until(lambda r: len(r.ends) == 1)
        [output] = [output for frame in router.frames for output in frame.outputs]
        assert struct.unpack("<2f", output.embedding) == (3.0, 5.0)
        assert not output.token_ids
        assert output.finish_reason == public.FINISH_REASON_STOP
        assert router.ends[1].HasField("finished")


async def test_another_epoch_is_told_so() -> None:
    async with _replica() as replica:
        router = await replica.connect(epoch=6)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.stream.read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "this is r@7, not r@6" in str(caught.value.details())


async def test_bad_requests_end_alone_with_the_field_named() -> None:
    async with _replica() as replica:
        router = await replica.connect()
        hot = internal.Submit(
            handle=1, prompt_token_ids=[1], sampling=sampling.SamplingParams(temperature=-1.0)
        )
        empty = internal.Submit(handle=2)
        await router.send(hot, empty, _submit(3))
        await router.until(lambda r: len(r.ends) == 3)
        failures = {handle: end.failed for handle, end in router.ends.items()}
        assert failures[1].cause == failures[2].cause == internal.Failed.CAUSE_INVALID
        assert (failures[1].field, failures[1].value) == ("temperature", "-1.0")
        assert failures[1].accepted
        assert failures[2].field == "prompt"
        assert router.tokens(3) == [2, 3, 4, 5]


async def test_a_cancel_reaches_the_engine_and_ends_the_request() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with _replica(engine) as replica:
        router = await replica.connect()
        await router.send(_submit(1, max_tokens=1000), _submit(2))
        await asyncio.to_thread(engine.entered.wait)
        await router.send(cancels=[1, 99])
        await router.until(lambda r: 1 in r.ends)
        assert router.ends[1].failed.cause == internal.Failed.CAUSE_CANCELLED
        engine.gate.set()
        await router.until(lambda r: 2 in r.ends)
        assert engine.cancelled == ["1/1"]


@pytest.mark.parametrize("way", ["cancel", "done_writing"])
async def test_the_end_of_a_stream_cancels_its_requests_and_no_others(way: str) -> None:
    async with _replica() as replica:
        leaver, stayer = await replica.connect(), await replica.connect()
        endless = 10**9
        await leaver.send(_submit(1, max_tokens=endless), _submit(2, max_tokens=endless))
        await leaver.until(lambda r: bool(r.tokens(1) and r.tokens(2)))
        await stayer.send(_submit(1, first=50))
        if way == "cancel":
            leaver.stream.cancel()
        else:
            await leaver.stream.done_writing()
        await stayer.until(lambda r: 1 in r.ends)
        assert stayer.tokens(1) == [51, 52, 53, 54]
        await stayer.until(lambda r: len(replica.engine.cancelled) == 2)


async def test_load_is_told_without_being_asked() -> None:
    async with _replica() as replica:
        router = await replica.connect()
        await router.until(lambda r: len(r.loads) >= 3)
        assert router.loads[-1].total_blocks == 100
        assert router.loads[-1].max_running_sequences == 100
        assert not router.loads[-1].draining


async def test_a_drain_refuses_new_requests_finishes_running_ones_and_ends_the_stream() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with _replica(engine) as replica:
        router = await replica.connect()
        await router.send(_submit(1))
        await asyncio.to_thread(engine.entered.wait)
        drain = asyncio.create_task(replica.servicer.drain(timeout_s=60))
        await router.until(lambda r: bool(r.loads) and r.loads[-1].draining)
        await router.send(_submit(2))
        await router.until(lambda r: 2 in r.ends)
        assert router.ends[2].failed.cause == internal.Failed.CAUSE_REFUSED
        engine.gate.set()
        await router.until(lambda r: 1 in r.ends)
        assert router.tokens(1) == [2, 3, 4, 5]
        while (frame := await router.stream.read()) is not grpc.aio.EOF:
            assert isinstance(frame, internal.ConnectResponse)
        assert await router.stream.code() is grpc.StatusCode.OK
        await drain


async def test_a_drain_that_takes_too_long_hands_requests_back() -> None:
    """With the tokens so far another replica can go on; nothing comes of it here after that."""
    engine = FakeEngine()
    async with _replica(engine) as replica:
        first, second = [await replica.connect() for _ in range(2)]
        await first.send(_submit(1, max_tokens=10**6))
        await second.send(_submit(1, max_tokens=10**6), _submit(2, first=7, max_tokens=10**6, n=2))
        for router, handle in (first, 1), (second, 2):
            await router.until(lambda r, handle=handle: len(r.tokens(handle)) > 2)  # type: ignore[misc]
        engine.gate.clear()
        await replica.servicer.drain(timeout_s=0)
        engine.gate.set()
        for router, handles in (first, {1}), (second, {1, 2}):
            while (frame := await router.stream.read()) is not grpc.aio.EOF:
                assert isinstance(frame, internal.ConnectResponse)
                router.frames.append(frame)
            assert set(router.ends) == handles
            assert {e.failed.cause for e in router.ends.values()} == {internal.Failed.CAUSE_MOVED}
            for handle in handles:
                tokens, before = router.tokens(handle), 7 if handle == 2 else 1
                assert tokens == [(before + i) % 1000 for i in range(1, len(tokens) + 1)]


async def test_more_requests_than_the_bound_are_refused() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    async with _replica(engine) as replica:
        router = await replica.connect()
        await router.send(*(_submit(handle) for handle in range(101)))
        await router.until(lambda r: 100 in r.ends)
        assert router.ends[100].failed.cause == internal.Failed.CAUSE_REFUSED


async def test_when_the_engine_dies_streams_end_as_unavailable() -> None:
    async with _replica() as replica:
        router = await replica.connect()
        await router.send(_submit(1, first=POISON))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.until(lambda r: 1 in r.ends)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
