"""The messages that calls send."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from trunkline.fields import assign
from trunkline.options import Options, request_options
from trunkline.types import Message
from trunkline.v1 import inference_pb2 as pb

Conversation: TypeAlias = Sequence[Message | Mapping[str, str]]
"""Turns, the oldest first; a mapping has the fields of Message as keys."""


def generate_request(
    prompt: str | Sequence[int], model: str, options: Options
) -> pb.GenerateRequest:
    """Asks to continue a prompt, which is text or token ids."""
    request = pb.GenerateRequest(model=model, options=request_options(options))
    if isinstance(prompt, str):
        assign(request, "prompt", prompt)
    else:
        request.token_ids.SetInParent()
        assign(request, "token_ids.ids", prompt)
    return request


def chat_request(messages: Conversation, model: str, options: Options) -> pb.ChatRequest:
    """Asks for the next turn of a conversation."""
    turns = [_turn(message, f"messages[{i}].") for i, message in enumerate(messages)]
    return pb.ChatRequest(model=model, messages=turns, options=request_options(options))


def tokenize_request(
    text: str | Conversation, model: str, special_tokens: bool
) -> pb.TokenizeRequest:
    """Asks for the tokens of a text or of a conversation."""
    request = pb.TokenizeRequest(model=model, no_special_tokens=not special_tokens)
    if isinstance(text, str):
        assign(request, "text", text)
    else:
        turns = [_turn(message, f"messages.messages[{i}].") for i, message in enumerate(text)]
        request.messages.CopyFrom(pb.ChatMessages(messages=turns))
    return request


def detokenize_request(token_ids: Sequence[int], model: str) -> pb.DetokenizeRequest:
    """Asks for the text of tokens."""
    request = pb.DetokenizeRequest(model=model)
    assign(request, "token_ids", token_ids)
    return request


def _turn(message: Message | Mapping[str, str], within: str) -> pb.ChatMessage:
    turn = Message(**message) if isinstance(message, Mapping) else message
    proto = pb.ChatMessage()
    for name in ("role", "content", "name"):
        assign(proto, name, getattr(turn, name), within=within)
    return proto
