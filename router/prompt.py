"""The prompt of a request as tokens, from whatever it came as; and tokens as text."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from trunkline.v1 import inference_pb2 as pb

from cluster.errors import invalid
from router.fleet.served_model import ServedModel
from router.text.codec import LONG_CHARS
from router.validation.prompt import check_messages

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and the field they came from."""

    field: str
    token_ids: list[int]


async def of_generate(request: pb.GenerateRequest, model: ServedModel) -> Prompt:
    """The prompt that Generate is to continue."""
    match request.WhichOneof("input"):
        case "prompt":
            text = request.prompt
            return Prompt("prompt", await _run(len(text), partial(model.codec.encode, text)))
        case "token_ids":
            return Prompt("token_ids.ids", list(request.token_ids.ids))
        case _:
            raise invalid("input", None, "prompt or token_ids")


async def of_chat(request: pb.ChatRequest, model: ServedModel) -> Prompt:
    """The rendered conversation that Chat is to answer."""
    return await of_messages("messages", request.messages, model)


async def of_tokenize(request: pb.TokenizeRequest, model: ServedModel) -> Prompt:
    """The text or conversation to tokenize."""
    match request.WhichOneof("input"):
        case "text":
            text = request.text
            encode = partial(
                model.codec.encode, text, add_special_tokens=not request.no_special_tokens
            )
            return Prompt("text", await _run(len(text), encode))
        case "messages":
            return await of_messages("messages.messages", request.messages.messages, model)
        case _:
            raise invalid("input", None, "text or messages")


async def of_messages(field: str, messages: Sequence[pb.ChatMessage], model: ServedModel) -> Prompt:
    """A conversation as the model's chat template renders it."""
    check_messages(field, [message.role for message in messages])
    plain = [_plain(message) for message in messages]
    size_bytes = sum(message.ByteSize() for message in messages)
    return Prompt(field, await _run(size_bytes, partial(model.codec.encode_chat, plain)))


async def decode(token_ids: Sequence[int], model: ServedModel) -> str:
    """The text of tokens."""
    return await _run(len(token_ids), partial(model.codec.decode, token_ids))


async def _run(size: int, work: Callable[[], Result]) -> Result:
    """The result of `work`, off the event loop if it takes long."""
    return work() if size <= LONG_CHARS else await asyncio.to_thread(work)


def _plain(message: pb.ChatMessage) -> dict[str, str]:
    plain = {"role": message.role, "content": message.content}
    return plain | {"name": message.name} if message.name else plain
