"""What a caller may ask for, as keyword arguments, and the message it becomes."""

from collections.abc import Mapping, Sequence
from typing import Final, TypedDict

from trunkline.fields import assign
from trunkline.v1 import inference_pb2 as pb


class Options(TypedDict, total=False):
    """Keyword arguments of `generate` and `chat`; absent or None means the server's default.

    Ranges stand beside the fields of the same names in `trunkline/v1/sampling.proto`.
    """

    max_tokens: int | None
    """Tokens per sample at the most; as many as fit by default."""
    min_tokens: int | None
    """Nothing ends a sample before this many tokens."""
    stop: str | Sequence[str] | None
    """Texts that end a sample and are not part of it."""
    stop_token_ids: Sequence[int] | None
    """Tokens that end a sample, beside the model's own."""
    ignore_eos: bool | None
    """Go on past the model's end-of-sequence tokens."""

    temperature: float | None
    """0 takes the likeliest token; 1.0 by default."""
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    """Added to the logits of these token ids."""
    allowed_token_ids: Sequence[int] | None
    banned_token_ids: Sequence[int] | None
    seed: int | None
    """The same seed gives the same tokens; drawn by the router by default."""

    n: int | None
    """Samples from the one prompt; 1 by default."""
    logprobs: int | None
    """Report each token's log-probability and those of this many likeliest tokens."""
    prompt_logprobs: int | None
    """The same for the prompt's tokens."""
    priority: int | None
    """Higher is served first; 0 by default."""
    metadata: Mapping[str, str] | None
    """Labels for the server's log."""
    request_id: str | None
    """Names the request in the server's log; drawn by the router by default."""
    session_id: str | None
    """Requests of one session go to one replica, where the server keeps sessions together."""
    no_response_cache: bool | None
    """Neither take a kept answer nor have this one kept."""


_PATHS: Final = {
    "max_tokens": "stop.max_tokens",
    "min_tokens": "stop.min_tokens",
    "stop": "stop.stop_strings",
    "stop_token_ids": "stop.stop_token_ids",
    "ignore_eos": "stop.ignore_eos",
    "temperature": "sampling.temperature",
    "top_k": "sampling.top_k",
    "top_p": "sampling.top_p",
    "min_p": "sampling.min_p",
    "repetition_penalty": "sampling.repetition_penalty",
    "frequency_penalty": "sampling.frequency_penalty",
    "presence_penalty": "sampling.presence_penalty",
    "logit_bias": "sampling.logit_bias",
    "allowed_token_ids": "sampling.allowed_token_ids",
    "banned_token_ids": "sampling.banned_token_ids",
    "seed": "sampling.seed",
    "logprobs": "logprobs.top_logprobs",
    "prompt_logprobs": "logprobs.prompt_top_logprobs",
    "n": "n",
    "priority": "priority",
    "metadata": "metadata",
    "request_id": "request_id",
    "session_id": "session_id",
    "no_response_cache": "no_response_cache",
}


def request_options(options: Options) -> pb.RequestOptions:
    """The options as the contract has them.

    Raises TypeError for unknown names and InvalidArgumentError for values that their field
    cannot hold; ranges are the server's to check.
    """
    if unknown := sorted(options.keys() - _PATHS.keys()):
        raise TypeError(f"unknown options: {', '.join(unknown)}")
    message = pb.RequestOptions()
    for name, value in options.items():
        if value is not None:
            one_text = name == "stop" and isinstance(value, str)
            assign(message, _PATHS[name], (value,) if one_text else value, within="options.")
    return message
