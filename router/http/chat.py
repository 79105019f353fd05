"""/v1/chat/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from trunkline.v1 import inference_pb2 as pb

from router.http.answer_parts import adds_something, cache_content, ending, usage_content
from router.http.chat_body import ChatBody
from router.http.chunks import Chunks
from router.http.endpoint import call_of, new_head
from router.http.errors import json_response
from router.http.exchange import DONE, EventStream, event, until_gone
from router.http.logprobs import chat_logprobs, prompt_logprobs
from router.http.options import request_options
from router.http.own_headers import own_headers
from router.http.parsing import parse, read_body
from router.http.replies import Reply, replies
from router.http.request_id import request_id
from router.http.service import Service
from router.http.whole import gather


class ChatEndpoint:
    """Answers conversations."""

    def __init__(self, service: Service, max_body_bytes: int, stall_s: float) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._stall_s = stall_s

    async def create(self, request: Request) -> Response:
        """One answer, whole or in events."""
        call = call_of(request)
        await self._service.check_caller(call)
        body = parse(ChatBody, await read_body(request, self._max_body_bytes))
        answered = replies([self._service.chat(_chat_request(body, request), call)], _params(body))
        if body.stream:
            head = new_head(request, "chat.completion.chunk", "chatcmpl")
            return EventStream(_events(answered, head, body), self._stall_s)
        head = new_head(request, "chat.completion", "chatcmpl")
        return json_response(await until_gone(request.receive, _answer(answered, head, body)))


def _chat_request(body: ChatBody, request: Request) -> pb.ChatRequest:
    options = request_options(
        body,
        own_headers(request),
        request_id=request_id(request),
        max_tokens=body.output_limit(),
        top_logprobs=body.logprobs_wanted(),
        prompt_logprobs=body.prompt_logprobs,
    )
    return pb.ChatRequest(model=body.model, messages=body.conversation(), options=options)


def _params(body: ChatBody) -> dict[str, str]:
    if body.max_completion_tokens is None:
        return {}
    return {"options.stop.max_tokens": "max_completion_tokens"}


async def _answer(
    answered: AsyncGenerator[Reply, None], head: dict[str, Any], body: ChatBody
) -> dict[str, Any]:
    whole = await gather(answered)
    choices = [
        {
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": chat_logprobs(delta.logprobs) if body.logprobs else None,
            **ending(delta),
        }
        for _, delta in whole.choices
    ]
    answer = {
        **head,
        "model": whole.model,
        "choices": choices,
        "usage": usage_content(whole.usage),
        **cache_content(whole.cache_sources),
    }
    if body.prompt_logprobs is not None:
        answer["prompt_logprobs"] = prompt_logprobs(whole.prompt_logprobs.get(0, ()))
    return answer


async def _events(
    answered: AsyncGenerator[Reply, None], head: dict[str, Any], body: ChatBody
) -> AsyncGenerator[bytes, None]:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    tail = {"usage": None} if with_usage else {}
    chunks = Chunks(head, tail)
    begun: set[int] = set()
    async with aclosing(answered):
        async for _, message in answered:
            if message.HasField("delta"):
                choice = _chunk_choice(message.delta, begun, with_logprobs=bool(body.logprobs))
                if choice is not None:
                    yield chunks.event(message.model, choice)
            elif with_usage:
                usage = usage_content(message.usage)
                source = cache_content([message.cache_source])
                yield event(
                    {**head, "model": message.model, "choices": [], "usage": usage, **source}
                )
    yield DONE


def _chunk_choice(
    delta: pb.Delta, begun: set[int], *, with_logprobs: bool
) -> dict[str, Any] | None:
    """The part of a choice that `delta` adds; None for none. The first one says who speaks."""
    added: dict[str, Any] = {"content": delta.text} if delta.text else {}
    if delta.index not in begun:
        begun.add(delta.index)
        added = {"role": "assistant", "content": delta.text}
    elif not adds_something(delta):
        return None
    return {
        "index": delta.index,
        "delta": added,
        "logprobs": chat_logprobs(delta.logprobs) if with_logprobs else None,
        **ending(delta),
    }
