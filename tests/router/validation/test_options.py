"""Every option outside the range that the contract names is refused by its path."""

import math
from typing import Any

import pytest
from google.protobuf import json_format
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError
from router.validation.options import check_options, timeout_s

VOCAB_SIZE = 100

GOOD: list[dict[str, Any]] = [
    {},
    {"request_id": "a.B:c_d-9"},
    {"n": 128, "priority": -100},
    {"sampling": {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0}},
    {"sampling": {"temperature": 100, "top_k": 2**31 - 1, "min_p": 1}},
    {"sampling": {"repetition_penalty": 10, "frequency_penalty": -2, "presence_penalty": 2}},
    {"sampling": {"logit_bias": {99: -100.0}, "allowed_token_ids": [0, 99]}},
    {"sampling": {"allowed_token_ids": [1, 2], "banned_token_ids": [1]}},
    {"sampling": {"seed": 2**64 - 1}},
    {"stop": {"max_tokens": 1, "min_tokens": 1, "stop_strings": ["x"] * 16}},
    {"stop": {"stop_strings": ["ß" * 256], "stop_token_ids": [0, 99]}},
    {"logprobs": {"top_logprobs": 20, "prompt_top_logprobs": 0}},
    {"metadata": {f"k{i}": "v" * 256 for i in range(16)}},
]

BAD: list[tuple[str, dict[str, Any]]] = [
    ("options.request_id", {"request_id": "a b"}),
    ("options.request_id", {"request_id": "a\n"}),
    ("options.request_id", {"request_id": "x" * 129}),
    ("options.n", {"n": 129}),
    ("options.priority", {"priority": 101}),
    ("options.priority", {"priority": -101}),
    ("options.sampling.temperature", {"sampling": {"temperature": -0.1}}),
    ("options.sampling.temperature", {"sampling": {"temperature": 101}}),
    ("options.sampling.temperature", {"sampling": {"temperature": math.nan}}),
    ("options.sampling.temperature", {"sampling": {"temperature": math.inf}}),
    ("options.sampling.top_k", {"sampling": {"top_k": 2**31}}),
    ("options.sampling.top_p", {"sampling": {"top_p": 0}}),
    ("options.sampling.top_p", {"sampling": {"top_p": 1.5}}),
    ("options.sampling.top_p", {"sampling": {"top_p": math.nan}}),
    ("options.sampling.min_p", {"sampling": {"min_p": -1}}),
    ("options.sampling.repetition_penalty", {"sampling": {"repetition_penalty": 0}}),
    ("options.sampling.repetition_penalty", {"sampling": {"repetition_penalty": -math.inf}}),
    ("options.sampling.frequency_penalty", {"sampling": {"frequency_penalty": 2.1}}),
    ("options.sampling.presence_penalty", {"sampling": {"presence_penalty": math.nan}}),
    ("options.sampling.logit_bias", {"sampling": {"logit_bias": {100: 1.0}}}),
    ("options.sampling.logit_bias[7]", {"sampling": {"logit_bias": {7: 101.0}}}),
    ("options.sampling.logit_bias[7]", {"sampling": {"logit_bias": {7: math.nan}}}),
    ("options.sampling.allowed_token_ids[1]", {"sampling": {"allowed_token_ids": [1, 100]}}),
    ("options.sampling.banned_token_ids[0]", {"sampling": {"banned_token_ids": [100]}}),
    ("options.sampling.banned_token_ids", {"sampling": {"banned_token_ids": list(range(100))}}),
    (
        "options.sampling.banned_token_ids",
        {"sampling": {"allowed_token_ids": [1], "banned_token_ids": [1]}},
    ),
    ("options.stop.max_tokens", {"stop": {"max_tokens": 0}}),
    ("options.stop.min_tokens", {"stop": {"max_tokens": 3, "min_tokens": 4}}),
    ("options.stop.stop_strings", {"stop": {"stop_strings": ["x"] * 17}}),
    ("options.stop.stop_strings[1]", {"stop": {"stop_strings": ["x", ""]}}),
    ("options.stop.stop_strings[0]", {"stop": {"stop_strings": ["x" * 257]}}),
    ("options.stop.stop_token_ids[0]", {"stop": {"stop_token_ids": [100]}}),
    ("options.logprobs.top_logprobs", {"logprobs": {"top_logprobs": 21}}),
    ("options.logprobs.prompt_top_logprobs", {"logprobs": {"prompt_top_logprobs": 21}}),
    ("options.metadata", {"metadata": {str(i): "" for i in range(17)}}),
    ("options.metadata", {"metadata": {"k" * 257: ""}}),
    ("options.metadata[k]", {"metadata": {"k": "v" * 257}}),
]


def options(fields: dict[str, Any]) -> pb.RequestOptions:
    return pb.RequestOptions(**fields)


@pytest.mark.parametrize("fields", GOOD)
def test_in_range_is_accepted(fields: dict[str, Any]) -> None:
    check_options(options(fields), VOCAB_SIZE)


@pytest.mark.parametrize(("field", "fields"), BAD)
def test_out_of_range_is_refused_by_name(field: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        check_options(options(fields), VOCAB_SIZE)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_ARGUMENT, field)
    assert caught.value.accepted


@pytest.mark.parametrize(
    ("seconds", "nanos"), [(0, 0), (-1, 0), (1, -1), (0, 1_000_000_000), (-5, 5)]
)
def test_a_timeout_is_a_positive_duration(seconds: int, nanos: int) -> None:
    with pytest.raises(RequestError) as caught:
        timeout_s(options({"timeout": {"seconds": seconds, "nanos": nanos}}))
    assert caught.value.field == "options.timeout"


def test_timeouts_are_seconds() -> None:
    assert timeout_s(pb.RequestOptions()) is None
    parsed = json_format.ParseDict({"timeout": "2.5s"}, pb.RequestOptions())
    assert timeout_s(parsed) == 2.5
