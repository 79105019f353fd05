"""Options reach the server as they were given, or are refused by name."""

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline import InvalidArgumentError, Options
from trunkline.options import _PATHS, request_options
from trunkline.requests import chat_request, detokenize_request, generate_request
from trunkline.v1 import inference_pb2 as pb

uint32 = st.integers(0, 2**32 - 1)
numbers = st.floats(width=32, allow_nan=False)
token_ids = st.lists(uint32, max_size=5)
texts = st.text(st.characters(codec="utf-8"), max_size=10)

EXAMPLES: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("max_tokens", "min_tokens", "top_k", "n"), uint32),
    **dict.fromkeys(("logprobs", "prompt_logprobs"), uint32),
    **dict.fromkeys(("stop_token_ids", "allowed_token_ids", "banned_token_ids"), token_ids),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), numbers),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), numbers),
    "stop": st.lists(texts, max_size=3),
    "ignore_eos": st.booleans(),
    "logit_bias": st.dictionaries(uint32, numbers, max_size=3),
    "seed": st.integers(0, 2**64 - 1),
    "priority": st.integers(-100, 100),
    "metadata": st.dictionaries(texts, texts, max_size=3),
    "request_id": texts,
    "session_id": texts,
    "no_response_cache": st.booleans(),
}


def sent(message: pb.RequestOptions, option: str) -> Any:
    *parents, name = _PATHS[option].split(".")
    value: Any = message
    for parent in parents:
        value = getattr(value, parent)
    return getattr(value, name)


def test_each_option_has_a_place_in_the_contract() -> None:
    assert _PATHS.keys() == Options.__annotations__.keys() == EXAMPLES.keys()


@given(st.fixed_dictionaries({}, optional=EXAMPLES))
def test_options_arrive_as_given(options: dict[str, Any]) -> None:
    message = pb.RequestOptions.FromString(
        request_options(cast("Options", options)).SerializeToString()
    )
    for name, value in options.items():
        assert sent(message, name) == value


def test_absent_and_none_leave_the_default_to_the_server() -> None:
    nothing = cast("Options", dict.fromkeys(_PATHS))
    assert request_options(nothing) == request_options({}) == pb.RequestOptions()


@pytest.mark.parametrize("name", ["temperature", "top_k", "seed", "max_tokens", "logprobs"])
def test_zero_is_not_absent(name: str) -> None:
    assert request_options(cast("Options", {name: 0})) != pb.RequestOptions()


def test_one_stop_text_may_stand_alone() -> None:
    assert list(request_options({"stop": "END"}).stop.stop_strings) == ["END"]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="unknown options: top_q"):
        request_options(cast("Options", {"top_q": 1}))


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("max_tokens", -1, "options.stop.max_tokens"),
        ("n", 1.5, "options.n"),
        ("temperature", "hot", "options.sampling.temperature"),
        ("logit_bias", [1], "options.sampling.logit_bias"),
        ("stop", ["\ud800"], "options.stop.stop_strings"),
        ("metadata", {"a": 1}, "options.metadata"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(name: str, value: object, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        request_options(cast("Options", {name: value}))
    assert caught.value.field == field
    assert caught.value.value == repr(value)
    assert caught.value.accepted


def test_prompts_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match=r"token_ids\.ids: got \[-1\]"):
        generate_request([-1], "", {})
    with pytest.raises(InvalidArgumentError, match="prompt: "):
        generate_request("\ud800", "", {})
    with pytest.raises(InvalidArgumentError, match="token_ids: "):
        detokenize_request([2**32], "")
    turns: Any = [{"role": "user", "content": "Hi"}, {"role": "user", "content": 3}]
    with pytest.raises(InvalidArgumentError, match=r"messages\[1\]\.content: "):
        chat_request(turns, "", {})
