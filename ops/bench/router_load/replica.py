"""A replica of no cost: `python -m ops.bench.router_load.replica`.

When it listens, it prints one line of JSON with three addresses: `replica` is what routers speak
to, `grpc` and `http` answer clients themselves, which is what routers are compared with.

The first token of a request comes at once; of all others, those of one router come in one frame for
each step, as from an engine. The first letter of a prompt tells how long steps are.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import (
    ReplicaServiceServicer,
    add_ReplicaServiceServicer_to_server,
)
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server

from ops.bench.router_load.openai_replica import answer
from ops.bench.router_load.pace import TOKEN, interval_s, run_steps

_BEAT_S = 0.25
_LOAD = internal.Load(
    free_blocks=1 << 20,
    total_blocks=1 << 20,
    prefill_tokens_per_s=1e6,
    decode_tokens_per_s=1e6,
    max_running_sequences=1 << 14,
)

# mypy: disable-error-code=override


class _Stream:
    """One router's requests."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._writing = asyncio.Lock()
        self._left: dict[float, dict[int, internal.Submit]] = {}
        """Sequences by the length of their steps, and by handle."""
        self._positions: dict[int, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        hello = (await self._context.read()).hello
        greeting = internal.ReplicaHello(replica_id=hello.replica_id, epoch=hello.epoch)
        await self._write(internal.ConnectResponse(hello=greeting))
        self._start(self._beat())
        while isinstance(frame := await self._context.read(), internal.ConnectRequest):
            await self._begin(frame)
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, frame: internal.ConnectRequest) -> None:
        first = internal.ConnectResponse()
        for submit in frame.submits:
            self._positions[submit.handle] = 0
            if self._advance(first, submit):
                length_s = interval_s(submit.prompt_token_ids[0])
                if length_s not in self._left:
                    self._left[length_s] = {}
                    self._start(self._run(length_s))
                self._left[length_s][submit.handle] = submit
        for handle in frame.cancels:
            for submits in self._left.values():
                submits.pop(handle, None)
        await self._write(first)

    async def _run(self, length_s: float) -> None:
        async def step() -> bool:
            frame = internal.ConnectResponse()
            running = self._left[length_s]
            for handle in [h for h, submit in running.items() if not self._advance(frame, submit)]:
                del running[handle]
            if not running:
                del self._left[length_s]
            await self._write(frame)
            return bool(running)

        await run_steps(length_s, step)

    def _advance(self, frame: internal.ConnectResponse, submit: internal.Submit) -> bool:
        """Add a sequence's next token; whether there are more."""
        handle = submit.handle
        position = self._positions[handle]
        self._positions[handle] = position + 1
        output = frame.outputs.add(handle=handle, token_ids=(TOKEN,), position=position)
        if position == 0:
            output.started.queue_s = 1e-6
        if position + 1 < submit.stop.max_tokens:
            return True
        output.finish_reason = pb.FINISH_REASON_LENGTH
        frame.ends.add(handle=handle).finished.SetInParent()
        del self._positions[handle]
        return False

    async def _beat(self) -> None:
        while True:
            await self._write(internal.ConnectResponse(load=_LOAD))
            await asyncio.sleep(_BEAT_S)

    async def _write(self, frame: internal.ConnectResponse) -> None:
        async with self._writing:
            await self._context.write(frame)


class _Replica(ReplicaServiceServicer):
    async def Connect(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        """See the contract."""
        await _Stream(context).serve()


class _Inference(InferenceServicer):
    async def Generate(  # noqa: N802
        self, request: pb.GenerateRequest, context: Any
    ) -> AsyncIterator[pb.GenerateResponse]:
        """As a router answers, without one."""
        length_s = interval_s(ord(request.prompt[0]))
        max_tokens = request.options.stop.max_tokens
        for position in range(max_tokens):
            if position:
                await asyncio.sleep(length_s)
            delta = pb.Delta(token_ids=(TOKEN,), text=chr(TOKEN))
            if position + 1 == max_tokens:
                delta.finish_reason = pb.FINISH_REASON_LENGTH
            yield pb.GenerateResponse(delta=delta)
        yield pb.GenerateResponse(usage=pb.Usage(completion_tokens=max_tokens))

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Any
    ) -> pb.TokenizeResponse:
        """A token for each letter."""
        return pb.TokenizeResponse(token_ids=request.text.encode())


async def _serve() -> None:
    replica, inference = grpc.aio.server(), grpc.aio.server()
    add_ReplicaServiceServicer_to_server(_Replica(), replica)
    # The load asks for nothing else.
    add_InferenceServicer_to_server(_Inference(), inference)  # type: ignore[abstract]
    addresses = {}
    for name, server in (("replica", replica), ("grpc", inference)):
        addresses[name] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
    http = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=2048)
    addresses["http"] = f"127.0.0.1:{http.sockets[0].getsockname()[1]}"
    print(json.dumps(addresses), flush=True)
    await http.serve_forever()


if __name__ == "__main__":
    sys.exit(uvloop.run(_serve()))
