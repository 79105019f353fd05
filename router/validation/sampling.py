"""Checks of how tokens are to be drawn."""

from trunkline.v1 import sampling_pb2 as pb

from cluster.errors import invalid
from router.validation.checks import check_above, check_range, check_token_ids

_FIELD = "options.sampling"


def check_sampling(sampling: pb.SamplingParams, vocab_size: int) -> None:
    """Every parameter within the range that the contract names."""
    if sampling.HasField("temperature"):
        check_range(f"{_FIELD}.temperature", sampling.temperature, 0.0, 100.0)
    check_range(f"{_FIELD}.top_k", sampling.top_k, 0, 2**31 - 1)
    if sampling.HasField("top_p"):
        check_above(f"{_FIELD}.top_p", sampling.top_p, 0.0, 1.0)
    check_range(f"{_FIELD}.min_p", sampling.min_p, 0.0, 1.0)
    _check_penalties(sampling)
    _check_tokens(sampling, vocab_size)


def _check_penalties(sampling: pb.SamplingParams) -> None:
    if sampling.HasField("repetition_penalty"):
        check_range(f"{_FIELD}.repetition_penalty", sampling.repetition_penalty, 0.001, 10.0)
    check_range(f"{_FIELD}.frequency_penalty", sampling.frequency_penalty, -2.0, 2.0)
    check_range(f"{_FIELD}.presence_penalty", sampling.presence_penalty, -2.0, 2.0)


def _check_tokens(sampling: pb.SamplingParams, vocab_size: int) -> None:
    for token_id, bias in sampling.logit_bias.items():
        if token_id >= vocab_size:
            raise invalid(f"{_FIELD}.logit_bias", token_id, f"token ids below {vocab_size}")
        check_range(f"{_FIELD}.logit_bias[{token_id}]", bias, -100.0, 100.0)
    check_token_ids(f"{_FIELD}.allowed_token_ids", sampling.allowed_token_ids, vocab_size)
    check_token_ids(f"{_FIELD}.banned_token_ids", sampling.banned_token_ids, vocab_size)
    if sampling.banned_token_ids:
        banned, allowed = set(sampling.banned_token_ids), set(sampling.allowed_token_ids)
        if not allowed - banned if allowed else len(banned) == vocab_size:
            raise invalid(
                f"{_FIELD}.banned_token_ids",
                len(sampling.banned_token_ids),
                "at least one token that is allowed and not banned",
            )
