"""/v1/completions."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from trunkline.v1 import inference_pb2 as pb

from router.call import Call
from router.http.answer_parts import adds_something, cache_content, usage_content
from router.http.chunks import Chunks
from router.http.completion_body import CompletionBody
from router.http.completion_choices import CompletionChoices
from router.http.echo import echo_of
from router.http.endpoint import call_of, new_head
from router.http.errors import json_response
from router.http.exchange import DONE, EventStream, event, until_gone
from router.http.logprobs import prompt_logprobs
from router.http.options import request_options
from router.http.own_headers import OwnHeaders, own_headers
from router.http.parsing import parse, read_body
from router.http.replies import Reply, replies
from router.http.request_id import request_id
from router.http.service import Service
from router.http.whole import add_usage, gather


class CompletionEndpoint:
    """Continues prompts."""

    def __init__(self, service: Service, max_body_bytes: int, stall_s: float) -> None:
        self._service = service
        self._max_body_bytes = max_body_bytes
        self._stall_s = stall_s

    async def create(self, request: Request) -> Response:
        """The continuations of all prompts of a body, whole or in events."""
        call = call_of(request)
        await self._service.check_caller(call)
        body = parse(CompletionBody, await read_body(request, self._max_body_bytes))
        body.check_best_of()
        prompts = body.prompts()
        headers = own_headers(request)
        asked = [
            _generate_request(body, headers, prompt, f"{request_id(request)}.{number}")
            for number, prompt in enumerate(prompts)
        ]
        choices = await self._choices(body, prompts, call)
        answered = replies([self._service.generate(one, call) for one in asked], _params(body))
        head = new_head(request, "text_completion", "cmpl")
        if body.stream:
            return EventStream(_events(answered, choices, head, body), self._stall_s)
        answer = _answer(answered, choices, head, body)
        return json_response(await until_gone(request.receive, answer))

    async def _choices(
        self, body: CompletionBody, prompts: list[str | list[int]], call: Call
    ) -> CompletionChoices:
        echoes = (
            [await echo_of(self._service, body.model, prompt, call) for prompt in prompts]
            if body.echo
            else []
        )
        return CompletionChoices(body.n or 1, echoes, with_logprobs=body.logprobs is not None)


def _generate_request(
    body: CompletionBody, headers: OwnHeaders, prompt: str | list[int], name: str
) -> pb.GenerateRequest:
    options = request_options(
        body,
        headers,
        request_id=name,
        max_tokens=body.output_limit(),
        top_logprobs=body.logprobs,
        prompt_logprobs=_prompt_logprobs_wanted(body),
    )
    if isinstance(prompt, str):
        return pb.GenerateRequest(model=body.model, prompt=prompt, options=options)
    token_ids = pb.TokenIds(ids=prompt)
    return pb.GenerateRequest(model=body.model, token_ids=token_ids, options=options)


def _prompt_logprobs_wanted(body: CompletionBody) -> int | None:
    if body.prompt_logprobs is None and body.echo:
        return body.logprobs
    return body.prompt_logprobs


def _params(body: CompletionBody) -> dict[str, str]:
    params = {"options.logprobs.top_logprobs": "logprobs"}
    if body.prompt_logprobs is None:
        params["options.logprobs.prompt_top_logprobs"] = "logprobs"
    return params


async def _answer(
    answered: AsyncGenerator[Reply, None],
    choices: CompletionChoices,
    head: dict[str, Any],
    body: CompletionBody,
) -> dict[str, Any]:
    whole = await gather(answered)
    for prompt, logprobs in whole.prompt_logprobs.items():
        choices.set_prompt_logprobs(prompt, logprobs)
    contents = []
    for prompt, delta in whole.choices:
        content = choices.choice(prompt, delta)
        if body.prompt_logprobs is not None:
            content["prompt_logprobs"] = prompt_logprobs(whole.prompt_logprobs.get(prompt, ()))
        contents.append(content)
    usage, source = usage_content(whole.usage), cache_content(whole.cache_sources)
    return {**head, "model": whole.model, "choices": contents, "usage": usage, **source}


async def _events(
    answered: AsyncGenerator[Reply, None],
    choices: CompletionChoices,
    head: dict[str, Any],
    body: CompletionBody,
) -> AsyncGenerator[bytes, None]:
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    tail = {"usage": None} if with_usage else {}
    chunks = Chunks(head, tail)
    usage, sources = pb.Usage(), list[pb.CacheSource.ValueType]()
    async with aclosing(answered):
        async for prompt, message in answered:
            if message.prompt_logprobs:
                choices.set_prompt_logprobs(prompt, message.prompt_logprobs)
            if message.HasField("delta"):
                choice = choices.choice(prompt, message.delta)
                if choice["text"] or adds_something(message.delta):
                    yield chunks.event(message.model, choice)
            else:
                head["model"] = message.model
                add_usage(usage, message.usage)
                sources.append(message.cache_source)
    if with_usage:
        usage_part, source = usage_content(usage), cache_content(sources)
        yield event({**head, "choices": [], "usage": usage_part, **source})
    yield DONE
