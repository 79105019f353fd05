"""A replica without an engine: it answers with tokens that a test has laid out."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import (
    ReplicaServiceServicer,
    add_ReplicaServiceServicer_to_server,
)
from trunkline.v1 import inference_pb2 as pb

from cluster.model_card import ModelCard
from cluster.registry import Registry, ReplicaRecord

LEASE_S = 60.0
BEAT_S = 0.25
PATIENCE_S = 20.0
Context = grpc.aio.ServicerContext[internal.ConnectRequest, internal.ConnectResponse]


@dataclass
class Script:
    """What a fake replica does with the requests it gets."""

    answer: Sequence[int] = (10, 11, 12, 13)
    """Tokens of every sample, cut at max_tokens; those that a request brings along are left out."""
    spread: int = 0
    """Added to the tokens of each sample, times its index."""
    tokens_per_output: int = 1
    stop_token_id: int | None = None
    """Ends samples, after the answer."""
    pause_after: int | None = None
    """Outputs after which a request waits for `resume`; 0 waits before the first."""
    fail_with: internal.Failed | None = None
    """In place of an answer."""
    fail_after: int = 0
    """Outputs before that."""
    repeats: bool = False
    """Send each output again, together with the next one."""
    skip: int | None = None
    """The output that is left out."""
    embed: Callable[[Sequence[int]], Sequence[float]] = lambda _: (1.0, 0.0)
    """The embedding of a prompt, of length 1."""
    started: internal.Started = field(
        default_factory=lambda: internal.Started(cached_prompt_tokens=2, queue_s=1e-6)
    )


class FakeReplica(ReplicaServiceServicer):
    """One incarnation of a replica, with a real gRPC server and an entry in the registry."""

    def __init__(
        self, registry: Registry, card: ModelCard, replica_id: str, script: Script
    ) -> None:
        self.replica_id = replica_id
        self.script = script
        self.epoch = 0
        self.load = internal.Load(total_blocks=100, free_blocks=100)
        self.submits: list[internal.Submit] = []
        self.cancels: list[int] = []
        self.num_streams = 0
        self.is_silent = False
        self.resume = asyncio.Event()
        self._registry = registry
        self._card = card
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._record: ReplicaRecord | None = None

    async def start(self, port: int = 0) -> None:
        """Serve under a new epoch, and register."""
        self.epoch = await self._registry.next_epoch()
        await self.listen(port)
        await self._registry.publish_model(self._card)
        await self.register()

    async def listen(self, port: int = 0) -> None:
        """Serve, under the epoch there is."""
        self._server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        add_ReplicaServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        self._record = ReplicaRecord(
            replica_id=self.replica_id,
            epoch=self.epoch,
            model=self._card.name,
            address=f"127.0.0.1:{port}",
        )

    @property
    def record(self) -> ReplicaRecord:
        """Its entry in the registry."""
        assert self._record is not None
        return self._record

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.record.address.rpartition(":")[2])

    async def register(self) -> None:
        """Take up the lease."""
        await self._registry.renew(self.record, LEASE_S)

    async def unregister(self) -> None:
        """End the lease; go on serving."""
        await self._registry.remove(self.record)

    async def kill(self) -> None:
        """Break all streams; the lease stays, as after a crash."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def until(self, condition: Callable[["FakeReplica"], bool]) -> None:
        """Wait until something holds about what has come in."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]  # noqa: N802
        """See the contract."""
        stream = _Stream(self, cast(Context, context))
        hello = (await context.read()).hello
        if (hello.replica_id, hello.epoch) != (self.replica_id, self.epoch):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "another replica")
        await stream.serve()

    async def note(self, frame: internal.ConnectRequest) -> None:
        """Remember what has come in."""
        async with self._changed:
            self.submits.extend(frame.submits)
            self.cancels.extend(frame.cancels)
            self._changed.notify_all()

    async def note_streams(self, change: int) -> None:
        """Remember that a stream has begun or ended."""
        async with self._changed:
            self.num_streams += change
            self._changed.notify_all()


class _Stream:
    """One router's stream, with a task for each of its requests."""

    def __init__(self, replica: FakeReplica, context: Context) -> None:
        self._replica = replica
        self._context = context
        self._writing = asyncio.Lock()
        self._requests: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        replica = self._replica
        hello = internal.ReplicaHello(replica_id=replica.replica_id, epoch=replica.epoch)
        await self._write(internal.ConnectResponse(hello=hello))
        await replica.note_streams(1)
        beat = asyncio.create_task(self._beat())
        try:
            while isinstance(frame := await self._context.read(), internal.ConnectRequest):
                self._begin(frame)
                await replica.note(frame)
        finally:
            for task in (beat, *self._requests.values()):
                task.cancel()
            await replica.note_streams(-1)

    def _begin(self, frame: internal.ConnectRequest) -> None:
        for submit in frame.submits:
            self._requests[submit.handle] = asyncio.create_task(self._answer(submit))
        for handle in frame.cancels:
            self._requests[handle].cancel()

    async def _beat(self) -> None:
        while True:
            await self._write(internal.ConnectResponse(load=self._replica.load))
            await asyncio.sleep(BEAT_S)

    async def _answer(self, submit: internal.Submit) -> None:
        script = self._replica.script
        end = internal.RequestEnd(handle=submit.handle, finished=internal.Finished())
        if script.pause_after == 0:
            await self._replica.resume.wait()
        if script.fail_with is not None:
            end.failed.CopyFrom(script.fail_with)
        steps = _steps(submit, script)
        for step, outputs in enumerate(steps, start=1):
            if script.fail_with is not None and script.fail_after < step:
                break
            if step == 1:
                outputs[0].started.CopyFrom(script.started)
            again = steps[step - 2] if script.repeats and step > 1 else []
            if script.skip != step:
                await self._write(internal.ConnectResponse(outputs=[*again, *outputs]))
            if script.pause_after == step:
                await self._replica.resume.wait()
        await self._write(internal.ConnectResponse(ends=[end]))

    async def _write(self, frame: internal.ConnectResponse) -> None:
        if self._replica.is_silent:
            return
        async with self._writing:
            await self._context.write(frame)


def _steps(submit: internal.Submit, script: Script) -> list[list[internal.SampleOutput]]:
    """Outputs of all samples, step by step; only one of a request to embed."""
    if submit.embed:
        values = script.embed(submit.prompt_token_ids)
        embedding = struct.pack(f"<{len(values)}f", *values)
        reason = pb.FINISH_REASON_STOP
        output = internal.SampleOutput(
            handle=submit.handle, embedding=embedding, finish_reason=reason
        )
        return [[output]]
    tokens = list(script.answer)
    if script.stop_token_id is not None:
        tokens.append(script.stop_token_id)
    is_cut = script.stop_token_id is None or len(tokens) > submit.stop.max_tokens
    tokens = tokens[: submit.stop.max_tokens]
    indices = range(submit.first_index, submit.first_index + submit.n)
    steps = []
    for start in range(submit.num_generated, len(tokens), script.tokens_per_output):
        chunk = tokens[start : start + script.tokens_per_output]
        is_last = start + len(chunk) == len(tokens)
        steps.append(
            [
                _output(submit, i, [t + i * script.spread for t in chunk], start, is_last, is_cut)
                for i in indices
            ]
        )
        if start == submit.num_generated and submit.logprobs.HasField("prompt_top_logprobs"):
            for token_id in submit.prompt_token_ids[1:]:
                steps[0][0].prompt_logprobs.append(logprob(token_id))
    return steps


def _output(
    submit: internal.Submit,
    index: int,
    chunk: Sequence[int],
    position: int,
    is_last: bool,
    is_cut: bool,
) -> internal.SampleOutput:
    output = internal.SampleOutput(
        handle=submit.handle, index=index, token_ids=chunk, position=position
    )
    if submit.logprobs.HasField("top_logprobs"):
        output.logprobs.extend(logprob(token_id) for token_id in chunk)
    if is_last:
        output.finish_reason = pb.FINISH_REASON_LENGTH if is_cut else pb.FINISH_REASON_STOP
        if not is_cut:
            output.stop_token_id = chunk[-1]
    return output


def logprob(token_id: int) -> pb.TokenLogprob:
    """The log-probability that the fake gives to a token, with one candidate beside it."""
    candidate = pb.TokenLogprob.Candidate(token_id=token_id, logprob=-0.5)
    return pb.TokenLogprob(token=candidate, top=[candidate])
