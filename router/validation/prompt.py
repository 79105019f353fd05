"""Checks of prompts: text on its way in, and tokens against the model's context."""

from collections.abc import Sequence

from trunkline.v1 import sampling_pb2

from cluster.errors import invalid
from cluster.model_card import ModelCard
from router.validation.checks import check_token_ids

MAX_MESSAGES = 4096
_MAX_ROLE_CHARS = 64


def check_messages(field: str, roles: Sequence[str]) -> None:
    """A conversation of which every message has a speaker."""
    if not 1 <= len(roles) <= MAX_MESSAGES:
        raise invalid(field, len(roles), f"1 to {MAX_MESSAGES} messages")
    for position, role in enumerate(roles):
        if not 1 <= len(role) <= _MAX_ROLE_CHARS:
            raise invalid(f"{field}[{position}].role", role, f"1 to {_MAX_ROLE_CHARS} characters")


def check_prompt_token_ids(field: str, token_ids: Sequence[int], card: ModelCard) -> None:
    """Tokens of the model, at least one, and few enough to leave room for one more."""
    most = card.max_model_len - 1
    if not 1 <= len(token_ids) <= most:
        raise invalid(field, f"{len(token_ids)} tokens", f"1 to {most} tokens")
    check_token_ids(field, token_ids, card.vocab_size)


def max_tokens(stop: sampling_pb2.StopConditions, num_prompt_tokens: int, card: ModelCard) -> int:
    """How many tokens may be generated, which the model's context must have room for."""
    room = card.max_model_len - num_prompt_tokens
    if stop.HasField("max_tokens"):
        if stop.max_tokens > room:
            raise invalid(
                "options.stop.max_tokens",
                stop.max_tokens,
                f"at most {room}, as the prompt takes {num_prompt_tokens} of the model's "
                f"{card.max_model_len} tokens",
            )
        return stop.max_tokens
    if stop.min_tokens > room:
        raise invalid("options.stop.min_tokens", stop.min_tokens, f"at most {room}")
    return room
