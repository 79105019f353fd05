"""Servers that do nothing but send: `python -m ops.bench.router_load.bare`.

They are what a router's own are built on, `grpc.aio` and uvicorn (with an ASGI application that is
one method), and so the least that a router in Python can cost. When they listen, one line of JSON
with their addresses is printed.
"""

import json
import socket
from typing import Any

import grpc
import uvicorn
import uvloop
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceServicer, add_InferenceServicer_to_server

from ops.bench.router_load.answers import Answers
from ops.bench.router_load.http_answers import HttpAnswers

_KEEP_ALIVE_S = 3600

# mypy: disable-error-code=override


class _Inference(InferenceServicer):
    def __init__(self) -> None:
        self._answers = Answers()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:  # noqa: N802
        """See the contract."""
        async for message in self._answers.Generate(request):
            await context.write(message)

    async def Tokenize(  # noqa: N802
        self, request: pb.TokenizeRequest, context: Any
    ) -> pb.TokenizeResponse:
        """See the contract."""
        return await self._answers.Tokenize(request)


async def _serve() -> None:
    server = grpc.aio.server()
    # The load asks for nothing else.
    add_InferenceServicer_to_server(_Inference(), server)  # type: ignore[abstract]
    addresses = {"grpc": f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"}
    await server.start()
    # TCP by name, or Nagle's algorithm stays on.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    addresses["http"] = f"127.0.0.1:{listener.getsockname()[1]}"
    print(json.dumps(addresses), flush=True)
    config = uvicorn.Config(
        HttpAnswers(),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
    )
    await uvicorn.Server(config).serve([listener])


if __name__ == "__main__":
    uvloop.run(_serve())
