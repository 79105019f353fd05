"""Whatever a client sends, it gets an answer or a typed error that names one of its fields."""

import re

import grpc
from google.protobuf.descriptor import Descriptor
from hypothesis import HealthCheck, given, settings
from trunkline.v1 import inference_pb2 as pb

from tests.router.harness import Client, detail_of
from tests.router.strategies import CHAT, DETOKENIZE, GENERATE, TOKENIZE

CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}

fuzzed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzed
@given(request=GENERATE)
async def test_generate(client: Client, request: pb.GenerateRequest) -> None:
    try:
        async for _ in client.stub.Generate(request):
            pass
    except grpc.aio.AioRpcError as error:
        check(error, pb.GenerateRequest.DESCRIPTOR)


@fuzzed
@given(request=CHAT)
async def test_chat(client: Client, request: pb.ChatRequest) -> None:
    try:
        async for _ in client.stub.Chat(request):
            pass
    except grpc.aio.AioRpcError as error:
        check(error, pb.ChatRequest.DESCRIPTOR)


@fuzzed
@given(request=TOKENIZE)
async def test_tokenize(client: Client, request: pb.TokenizeRequest) -> None:
    try:
        await client.stub.Tokenize(request)
    except grpc.aio.AioRpcError as error:
        check(error, pb.TokenizeRequest.DESCRIPTOR)


@fuzzed
@given(request=DETOKENIZE)
async def test_detokenize(client: Client, request: pb.DetokenizeRequest) -> None:
    try:
        await client.stub.Detokenize(request)
    except grpc.aio.AioRpcError as error:
        check(error, pb.DetokenizeRequest.DESCRIPTOR)


def check(error: grpc.aio.AioRpcError, request: Descriptor) -> None:
    """The error is one that clients cause, and its field is one of the request's."""
    assert error.code() in CODES, error
    detail = detail_of(error)
    assert detail.message == error.details()
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return
    found: Descriptor | None = request
    for name in re.sub(r"\[.*\]", "", detail.field).split("."):
        assert found is not None, detail
        if name in found.oneofs_by_name:
            return
        found = found.fields_by_name[name].message_type
