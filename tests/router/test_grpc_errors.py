"""Clients learn what is wrong, however much there is to say about it."""

from typing import Any

import grpc
import pytest
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import (
    InferenceServicer,
    InferenceStub,
    add_InferenceServicer_to_server,
)

from cluster.errors import Reason, RequestError
from router.grpc_errors import abort
from tests.router.harness import detail_of


class Refusing(InferenceServicer):
    """Refuses with a message, field, value and accepted that are all the same text."""

    def __init__(self, text: str) -> None:
        self._error = RequestError(
            Reason.INVALID_ARGUMENT, text, field=text, value=text, accepted=text, retry_after_s=1.5
        )

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        await abort(context, self._error)


@pytest.mark.parametrize("text", ["short", "line\r\nheader: x", "x" * 20_000, "🙂" * 20_000])
async def test_an_error_keeps_its_status_whatever_its_text(text: str) -> None:
    server = grpc.aio.server()
    add_InferenceServicer_to_server(Refusing(text), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await InferenceStub(channel).ListModels(pb.ListModelsRequest())
    await server.stop(None)
    detail = detail_of(caught.value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert detail.reason == "INVALID_ARGUMENT"
    for told in (caught.value.details(), detail.message, detail.field, detail.value):
        assert told
        assert text.startswith(told.removesuffix("…"))
