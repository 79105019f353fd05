"""Requests have one key exactly if they get one answer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.v1 import inference_pb2 as pb

from cluster.model_card import ModelCard
from router.response_cache.request_key import is_repeatable, request_key


def options_of(**fields: Any) -> pb.RequestOptions:
    """Options, with dictionaries in the place of messages."""
    return pb.RequestOptions(**fields)


SEEDED = options_of(n=1, sampling={"seed": 7}, stop={"max_tokens": 9})
GREEDY = options_of(n=1, sampling={"temperature": 0.0}, stop={"max_tokens": 9})
TOKENS = [5, 6, 7]


def merged(options: pb.RequestOptions, **changes: Any) -> pb.RequestOptions:
    """The options with some of them changed."""
    result = pb.RequestOptions()
    result.CopyFrom(options)
    result.MergeFrom(options_of(**changes))
    return result


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (options_of(), False),
        (options_of(sampling={"temperature": 0.5, "top_k": 1}), False),
        (options_of(sampling={"seed": 0}), True),
        (options_of(sampling={"temperature": 0.0}), True),
        (options_of(sampling={"temperature": -0.0}), True),
    ],
)
def test_only_greedy_and_seeded_requests_are_repeatable(
    options: pb.RequestOptions, expected: bool
) -> None:
    assert is_repeatable(options) is expected


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 2},
        {"sampling": {"seed": 8}},
        {"sampling": {"temperature": 0.9}},
        {"sampling": {"top_k": 3}},
        {"sampling": {"top_p": 0.9}},
        {"sampling": {"min_p": 0.1}},
        {"sampling": {"repetition_penalty": 1.1}},
        {"sampling": {"frequency_penalty": 0.1}},
        {"sampling": {"presence_penalty": 0.1}},
        {"sampling": {"logit_bias": {3: 1.0}}},
        {"sampling": {"allowed_token_ids": [3]}},
        {"sampling": {"banned_token_ids": [3]}},
        {"stop": {"max_tokens": 8}},
        {"stop": {"min_tokens": 2}},
        {"stop": {"stop_strings": ["x"]}},
        {"stop": {"stop_token_ids": [4]}},
        {"stop": {"ignore_eos": True}},
        {"logprobs": {"top_logprobs": 0}},
        {"logprobs": {"prompt_top_logprobs": 0}},
    ],
)
def test_what_changes_the_answer_changes_the_key(
    card: ModelCard, changes: dict[str, object]
) -> None:
    other = merged(SEEDED, **changes)
    assert request_key(card, TOKENS, other, b"") != request_key(card, TOKENS, SEEDED, b"")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        (SEEDED, {"sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}}),
        (SEEDED, {"sampling": {"repetition_penalty": 1.0, "presence_penalty": 0.0}}),
        (SEEDED, {"sampling": {"frequency_penalty": 0.0}}),
        (SEEDED, {"request_id": "r", "priority": 3, "session_id": "s", "metadata": {"a": "b"}}),
        (SEEDED, {"timeout": {"seconds": 3}}),
        (GREEDY, {"sampling": {"seed": 3, "top_k": 4, "top_p": 0.5, "min_p": 0.5}}),
        (GREEDY, {"sampling": {"temperature": -0.0}}),
    ],
)
def test_what_changes_nothing_leaves_the_key(
    card: ModelCard, options: pb.RequestOptions, changes: dict[str, object]
) -> None:
    other = merged(options, **changes)
    assert request_key(card, TOKENS, other, b"") == request_key(card, TOKENS, options, b"")


@given(ids=st.lists(st.integers(0, 399), min_size=1, max_size=8), data=st.data())
def test_lists_that_are_sets_may_be_in_any_order(
    card: ModelCard, ids: list[int], data: st.DataObject
) -> None:
    def key(ids: list[int]) -> bytes:
        options = merged(
            SEEDED,
            sampling={"allowed_token_ids": ids, "banned_token_ids": ids},
            stop={"stop_token_ids": ids, "stop_strings": map(str, ids)},
        )
        return request_key(card, TOKENS, options, b"")

    assert key(data.draw(st.permutations(ids))) == key([*ids, ids[0]])


@given(
    a=st.lists(st.integers(0, 399), max_size=4),
    b=st.lists(st.integers(0, 399), max_size=4),
)
def test_other_prompts_have_other_keys(card: ModelCard, a: list[int], b: list[int]) -> None:
    assert (request_key(card, a, SEEDED, b"") == request_key(card, b, SEEDED, b"")) is (a == b)


@given(a=st.binary(max_size=100), b=st.binary(max_size=100))
def test_salts_keep_keys_apart(card: ModelCard, a: bytes, b: bytes) -> None:
    assert (request_key(card, TOKENS, SEEDED, a) == request_key(card, TOKENS, SEEDED, b)) is (
        a == b
    )


@pytest.mark.parametrize(
    "fields",
    [{"name": "other"}, {"fingerprint": "1" * 32}, {"precision": "int4"}, {"eos_token_ids": (9,)}],
)
def test_models_keep_keys_apart(card: ModelCard, fields: dict[str, object]) -> None:
    other = card.model_copy(update=fields)
    assert request_key(card, TOKENS, SEEDED, b"") != request_key(other, TOKENS, SEEDED, b"")
