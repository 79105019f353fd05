"""A replica of no cost: `python -m ops.bench.router_load.replica`.

When it listens, it prints one line of JSON with the address that routers speak to. The first token
of a request comes at once; of all others, those of one router come in one frame for each step, as
from an engine. Prompts begin with the pace of these steps.
"""

import asyncio
import json
from typing import Any

import grpc
import uvloop
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import (
    ReplicaServiceServicer,
    add_ReplicaServiceServicer_to_server,
)
from trunkline.v1 import inference_pb2 as pb

from ops.bench.router_load.pace import TOKEN, Pace

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
        self._left: dict[Pace, dict[int, internal.Submit]] = {}
        """Sequences by their pace and by handle."""
        self._stepping: set[Pace] = set()
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
                pace = Pace.of(submit.prompt_token_ids)
                self._left.setdefault(pace, {})[submit.handle] = submit
        for handle in frame.cancels:
            for submits in self._left.values():
                submits.pop(handle, None)
        await self._write(first)
        for pace in self._left.keys() - self._stepping:
            if len(self._left[pace]) >= pace.together:
                self._stepping.add(pace)
                self._start(self._run(pace))

    async def _run(self, pace: Pace) -> None:
        running, loop = self._left[pace], asyncio.get_running_loop()
        is_over = False
        while not is_over:
            await asyncio.sleep(pace.until_step_s(loop.time()))
            frame = internal.ConnectResponse()
            for handle in [h for h, submit in running.items() if not self._advance(frame, submit)]:
                del running[handle]
            is_over = not running
            if is_over:
                del self._left[pace]
                self._stepping.discard(pace)
            # Returns when there is room on the way to the router.
            await self._write(frame)

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


async def _serve() -> None:
    server = grpc.aio.server()
    add_ReplicaServiceServicer_to_server(_Replica(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"replica": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve())
