"""Whatever is sent, nothing in the cluster fails, and it serves afterwards."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline import AsyncClient
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

from router.http.chat_body import ChatBody
from router.http.completion_body import CompletionBody
from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually
from tests.e2e.strategies import IN_RANGE
from tests.router import strategies
from tests.router.http.strategies import bodies, messages

CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
STATUSES = {200, 400, 404, 504}
TIMEOUT_S = 2.0
"""What asks for thousands of tokens runs into a deadline, which is part of the test."""

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "timeout_s": TIMEOUT_S}
TEXT = {"model": "demo", "prompt": "hi", "timeout_s": TIMEOUT_S}

fuzzed = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
async def nothing_has_failed(cluster: Cluster) -> AsyncIterator[None]:
    """The same processes serve after a test, and have no requests left."""
    before = cluster.leaders() | {cluster.router().pid}
    yield
    await eventually(cluster.is_idle, "all requests have ended")
    assert cluster.leaders() | {cluster.router().pid} == before
    async with AsyncClient(cluster.grpc) as client:
        assert await client.generate("x", max_tokens=2, ignore_eos=True).text()


def together(requests: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Requests that share steps of the engines."""
    return st.lists(requests.map(of_this_cluster), min_size=1, max_size=16)


def of_this_cluster(request: Any) -> Any:
    """For the model that is served; short unless the request says how long."""
    if request.model == "tiny":
        request.model = "demo"
    if "options" in request.DESCRIPTOR.fields_by_name:
        stop = request.options.stop
        if not stop.HasField("max_tokens"):
            stop.max_tokens = 4
    return request


@fuzzed
@given(
    generate=together(strategies.GENERATE),
    chat=together(strategies.CHAT),
    tokenize=together(strategies.TOKENIZE),
    detokenize=together(strategies.DETOKENIZE),
)
async def test_messages(
    cluster: Cluster,
    generate: list[pb.GenerateRequest],
    chat: list[pb.ChatRequest],
    tokenize: list[pb.TokenizeRequest],
    detokenize: list[pb.DetokenizeRequest],
) -> None:
    async with grpc.aio.insecure_channel(cluster.grpc) as channel:
        stub = InferenceStub(channel)
        # One kind at a time: a deadline counts from the start, and cores may be few.
        await check_streams(stub.Generate, generate)
        await check_streams(stub.Chat, chat)
        await check_calls(stub.Tokenize, tokenize)
        await check_calls(stub.Detokenize, detokenize)


@fuzzed
@given(requests=st.lists(IN_RANGE, min_size=1, max_size=16))
async def test_messages_in_range(cluster: Cluster, requests: list[pb.GenerateRequest]) -> None:
    """Sampled together, with all that the contract allows, none comes to grief."""

    async def reasons(request: pb.GenerateRequest) -> list[int]:
        messages = [message async for message in stub.Generate(request)]
        return [m.delta.finish_reason for m in messages if m.delta.finish_reason]

    async with grpc.aio.insecure_channel(cluster.grpc) as channel:
        stub = InferenceStub(channel)
        answers = await asyncio.gather(*map(reasons, requests))
    for answer, request in zip(answers, requests, strict=True):
        assert len(answer) == max(1, request.options.n), request
        assert set(answer) <= {pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH}, request


async def check_streams(method: Callable[..., Any], requests: Sequence[Any]) -> None:
    async def read(call: Any) -> None:
        with suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass

    calls = [method(request, timeout=TIMEOUT_S) for request in requests]
    await asyncio.gather(*map(read, calls))
    await check_codes(calls, requests)


async def check_calls(method: Callable[..., Any], requests: Sequence[Any]) -> None:
    await check_codes([method(request, timeout=TIMEOUT_S) for request in requests], requests)


async def check_codes(calls: Sequence[Any], requests: Sequence[Any]) -> None:
    for call, request in zip(calls, requests, strict=True):
        assert await call.code() in CODES, (request, await call.details())


@fuzzed
@given(
    chats=st.lists(bodies(CHAT, list(ChatBody.model_fields)), min_size=1, max_size=8),
    said=st.lists(messages, max_size=8),
    texts=st.lists(bodies(TEXT, list(CompletionBody.model_fields)), max_size=8),
)
async def test_bodies(
    cluster: Cluster,
    chats: list[dict[str, Any]],
    said: list[list[Any]],
    texts: list[dict[str, Any]],
) -> None:
    talks = [CHAT | {"max_tokens": 4, "messages": each} for each in said]
    await check_answers(cluster, "chat/completions", [{"max_tokens": 4} | b for b in chats] + talks)
    await check_answers(cluster, "completions", texts)


async def check_answers(cluster: Cluster, path: str, contents: Sequence[dict[str, Any]]) -> None:
    async with httpx.AsyncClient(base_url=cluster.http, timeout=None) as http:
        answers = await asyncio.gather(
            *(http.post(f"/v1/{path}", content=json.dumps(each)) for each in contents)
        )
    for answer, content in zip(answers, contents, strict=True):
        assert answer.status_code in STATUSES, (content, answer.text)
        assert "internal_error" not in answer.text, content


BYTES = st.one_of(
    st.binary(max_size=2000),
    # Beginnings of what is expected, and then something else.
    st.builds(
        bytes.__add__,
        st.sampled_from(
            [
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n",
                b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                b"GET /v1/models HTTP/1.1\r\nX: ",
            ]
        ),
        st.binary(max_size=2000),
    ),
)


@fuzzed
@given(payloads=st.lists(BYTES, min_size=1, max_size=16))
async def test_bytes(cluster: Cluster, payloads: list[bytes]) -> None:
    """On every socket: the router's two, and those that only routers and Prometheus know."""
    [record, *_] = await cluster.replicas()
    addresses = (
        *(cluster.run.grpc_address, cluster.run.http_address),
        *(record.address, record.metrics_address),
    )
    await asyncio.gather(*(send(address, payload) for address in addresses for payload in payloads))


async def send(address: str, payload: bytes) -> None:
    """Say it, hang up, and see what comes back until the other side hangs up too."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    # A connection that is reset has been refused, too.
    with suppress(OSError):
        writer.write(payload)
        writer.write_eof()
        answer = await reader.read()
        assert b"500 Internal Server Error" not in answer
    writer.close()
