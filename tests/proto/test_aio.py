"""The client for asyncio, over a real connection."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from trunkline import (
    AsyncClient,
    DeadlineExceededError,
    Delta,
    FinishReason,
    Message,
    Model,
    RequestCancelledError,
    Usage,
)

from tests.proto.fake_inference import WORDS, FakeInference

WAIT_S = 30


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address) as client:
        yield client


async def ended(service: FakeInference) -> bool:
    return await asyncio.to_thread(service.ended.wait, WAIT_S)


async def test_deltas_come_one_by_one_before_the_answer_is_whole(
    service: FakeInference, client: AsyncClient
) -> None:
    service.flow.clear()
    stream = client.generate("Once", max_tokens=2)
    assert await anext(stream) == Delta(" one", (0,))
    service.flow.set()
    rest = [delta async for delta in stream]
    assert rest == [Delta(" two", (1,), finish_reason=FinishReason.LENGTH)]


async def test_text_and_texts(client: AsyncClient) -> None:
    stream = client.chat([Message("user", "Hello!")], n=2, max_tokens=2)
    assert await stream.texts() == [" one two"] * 2
    assert await stream.text() == " one two"
    assert stream.usage == Usage(prompt_tokens=2, completion_tokens=4, cached_prompt_tokens=0)


async def test_many_requests_share_a_connection(client: AsyncClient) -> None:
    counts = range(1, 65)
    texts = await asyncio.gather(
        *(client.generate("Once", max_tokens=count).text() for count in counts)
    )
    assert texts == ["".join(WORDS[i % len(WORDS)] for i in range(count)) for count in counts]


async def test_unary_calls(client: AsyncClient) -> None:
    assert await client.tokenize("a", special_tokens=False) == [97]
    assert await client.detokenize([97]) == "a"
    assert await client.models() == [Model("fake", 512, 256, 1)]


async def test_closing_a_stream_cancels_its_request(
    service: FakeInference, client: AsyncClient
) -> None:
    service.flow.clear()
    async with client.generate("Once") as stream:
        await anext(stream)
    assert await ended(service)
    with pytest.raises(RequestCancelledError):
        await stream.text()


async def test_closing_a_stream_ends_the_wait_of_its_reader(
    service: FakeInference, client: AsyncClient
) -> None:
    service.flow.clear()
    stream = client.generate("Once")
    await anext(stream)
    reader = asyncio.create_task(stream.text())
    await asyncio.sleep(0)
    await stream.close()
    with pytest.raises(RequestCancelledError):
        await reader


async def test_dropping_a_stream_cancels_its_request(
    service: FakeInference, client: AsyncClient
) -> None:
    service.flow.clear()
    async for _ in client.generate("Once"):
        break
    gc.collect()
    assert await ended(service)


async def test_cancelling_the_reader_cancels_the_request(
    service: FakeInference, client: AsyncClient
) -> None:
    service.flow.clear()
    stream = client.generate("Once")
    await anext(stream)
    reader = asyncio.create_task(stream.text())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await ended(service)


async def test_the_deadline_ends_the_request(service: FakeInference, client: AsyncClient) -> None:
    service.flow.clear()
    with pytest.raises(DeadlineExceededError):
        await client.generate("Once", timeout_s=0.5).text()
    assert await ended(service)
