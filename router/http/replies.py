"""What the service answers to the one or several requests that a body stands for."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError
from router.http.errors import in_openai_terms

Message = pb.GenerateResponse | pb.ChatResponse

Stream = AsyncGenerator[pb.GenerateResponse, None] | AsyncGenerator[pb.ChatResponse, None]

_MAX_QUEUED = 64
"""Messages read ahead of a slow client; past them its requests wait for it."""


class Reply(NamedTuple):
    """A message of the service."""

    prompt: int
    """Which of the body's prompts it answers."""
    message: Message


async def replies(
    streams: Sequence[Stream], params: Mapping[str, str]
) -> AsyncGenerator[Reply, None]:
    """All messages of all streams as they come.

    Raises RequestError in OpenAI's terms (see `in_openai_terms`) as soon as one stream or one
    sample fails, since OpenAI's answers cannot say that a part of them is missing. Closing it
    closes the streams.
    """
    merged = _only(streams[0]) if len(streams) == 1 else _merge(streams)
    try:
        async with aclosing(merged):
            async for reply in merged:
                _check(reply.message)
                yield reply
    except RequestError as error:
        raise in_openai_terms(error, params) from error


def _check(message: Message) -> None:
    if message.delta.finish_reason == pb.FINISH_REASON_ERROR:
        raise RequestError(
            Reason.INTERNAL, f"choice {message.delta.index} of {message.request_id} failed"
        )


async def _only(stream: Stream) -> AsyncGenerator[Reply, None]:
    async with aclosing(stream):
        async for message in stream:
            yield Reply(0, message)


async def _merge(streams: Sequence[Stream]) -> AsyncGenerator[Reply, None]:
    queue: asyncio.Queue[Reply | Exception | None] = asyncio.Queue(_MAX_QUEUED)
    readers = [
        asyncio.create_task(_read(prompt, stream, queue)) for prompt, stream in enumerate(streams)
    ]
    try:
        num_open = len(streams)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    prompt: int, stream: Stream, queue: asyncio.Queue[Reply | Exception | None]
) -> None:
    try:
        async with aclosing(stream):
            async for message in stream:
                await queue.put(Reply(prompt, message))
    except Exception as error:  # raised again by the one who waits at the queue
        await queue.put(error)
    else:
        await queue.put(None)
