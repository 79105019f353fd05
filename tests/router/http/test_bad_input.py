"""Whatever is sent, the answer is a result or an error that names what is wrong."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import RequestError
from router.http.chat_body import ChatBody
from router.http.completion_body import CompletionBody
from router.http.parsing import parse
from tests.router.http.conftest import MAX_BODY_BYTES
from tests.router.http.strategies import bodies, messages

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}


def refusal(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post(f"/v1/{path}", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert isinstance(error, dict)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{error['param']}: ")
    return error


@pytest.mark.parametrize(
    ("path", "fields", "param", "message"),
    [
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools", "not supported"),
        ("chat/completions", {"tool_choice": "required"}, "tool_choice", "tools are not supported"),
        ("chat/completions", {"functions": [{}]}, "functions", "not supported"),
        (
            "chat/completions",
            {"response_format": {"type": "json_object"}},
            "response_format",
            "of type text",
        ),
        ("chat/completions", {"audio": {}}, "audio", "not supported"),
        ("chat/completions", {"modalities": ["audio"]}, "modalities", '["text"]'),
        ("chat/completions", {"store": True}, "store", "nothing is stored"),
        ("chat/completions", {"temprature": 1}, "temprature", "unknown field"),
        ("chat/completions", {"messages": []}, "messages", "at least 1"),
        ("chat/completions", {"messages": "hi"}, "messages", "a valid array"),
        ("chat/completions", {"messages": [{}]}, "messages[0].role", "is required"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "parts of type text",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "", "tool_call_id": "x"}]},
            "messages[0].tool_call_id",
            "unknown field",
        ),
        ("chat/completions", {"top_logprobs": 3}, "top_logprobs", "unless logprobs is true"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "[0, 20]"),
        ("chat/completions", {"logprobs": 1}, "logprobs", "a valid boolean"),
        (
            "chat/completions",
            {"max_tokens": 1, "max_completion_tokens": 2},
            "max_tokens",
            "only one",
        ),
        ("chat/completions", {"max_completion_tokens": 0}, "max_completion_tokens", "[1, "),
        ("chat/completions", {"max_tokens": 0}, "max_tokens", "[1, "),
        ("chat/completions", {"n": 0}, "n", "greater than or equal to 1"),
        ("chat/completions", {"top_p": 0}, "top_p", "(0.0, 1.0]"),
        ("chat/completions", {"temperature": "hot"}, "temperature", "got 'hot'"),
        ("chat/completions", {"temperature": 1e300}, "temperature", "[0.0, 100.0]"),
        ("chat/completions", {"stop": [""]}, "stop[0]", "1 to 256 characters"),
        ("chat/completions", {"stop": 5}, "stop", "a string, a list of strings or null"),
        ("chat/completions", {"logit_bias": {"x": 1}}, "logit_bias.x", "a valid integer"),
        ("chat/completions", {"logit_bias": {"5": 101}}, "logit_bias[5]", "[-100.0, 100.0]"),
        ("chat/completions", {"seed": 2**64}, "seed", "less than or equal to"),
        ("chat/completions", {"stream_options": {}}, "stream_options", "unless stream is true"),
        ("chat/completions", {"timeout_s": 0}, "timeout_s", "greater than 0"),
        ("completions", {"prompt": None}, "prompt", "a list of lists of token ids"),
        ("completions", {"prompt": []}, "prompt", "1 to 128 prompts"),
        ("completions", {"prompt": ["x"] * 129}, "prompt", "1 to 128 prompts"),
        ("completions", {"prompt": ["a", 1]}, "prompt", "a list of strings"),
        ("completions", {"prompt": [-1]}, "prompt", "a list of token ids"),
        ("completions", {"prompt": [2**31], "echo": True}, "prompt[0]", "below"),
        ("completions", {"suffix": "x"}, "suffix", "nothing can be inserted"),
        ("completions", {"best_of": 2}, "best_of", "the same as n"),
        ("completions", {"logprobs": 21}, "logprobs", "[0, 20]"),
        ("completions", {"logprobs": True}, "logprobs", "a valid integer"),
        ("completions", {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "null if"),
        ("completions", {"min_tokens": 17}, "min_tokens", "at most max_tokens (16)"),
    ],
)
def test_the_error_names_the_field_and_what_it_accepts(
    http: httpx.Client, path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    body = CHAT if path.startswith("chat") else TEXT
    error = refusal(http, path, body | fields)
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 50_000 + b"]" * 49_000 + b"}",
        b'{"metadata": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001,
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_what_is_no_body_is_refused(http: httpx.Client, path: str, content: bytes) -> None:
    response = http.post(f"/v1/{path}", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_a_body_that_is_too_long_is_refused(http: httpx.Client) -> None:
    response = http.post("/v1/completions", content=b"x" * (MAX_BODY_BYTES + 1))
    assert response.status_code == 413
    assert "longer than" in response.json()["error"]["message"]


def test_a_path_or_method_that_is_unknown_is_refused_in_the_same_shape(http: httpx.Client) -> None:
    for response, status in (
        (http.get("/v1/nothing"), 404),
        (http.get("/v1/completions"), 405),
    ):
        assert response.status_code == status
        assert response.json()["error"]["code"] == "unknown_url"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chat=bodies(CHAT, list(ChatBody.model_fields)),
    text=bodies(TEXT, list(CompletionBody.model_fields)),
    said=messages,
)
def test_no_body_makes_the_server_fail(
    http: httpx.Client, chat: dict[str, Any], text: dict[str, Any], said: list[Any]
) -> None:
    for path, body in (
        ("chat/completions", chat),
        ("chat/completions", chat | {"messages": said}),
        ("completions", text),
    ):
        response = http.post(f"/v1/{path}", content=json.dumps(body))
        assert response.status_code in {200, 400}, response.text
        if response.status_code == 400:
            assert response.json()["error"]["message"]
        elif body.get("stream"):
            assert response.text.endswith("data: [DONE]\n\n")


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_make_the_server_fail(http: httpx.Client, content: bytes) -> None:
    for path in ("chat/completions", "completions"):
        assert http.post(f"/v1/{path}", content=content).status_code == 400


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (ChatBody, {**CHAT, "messages": [1] * 500_000}, "messages[0]"),
        (CompletionBody, {**TEXT, "prompt": [[1.5] * 500_000]}, "prompt"),
        (CompletionBody, {**TEXT, "stop_token_ids": ["x"] * 500_000}, "stop_token_ids[0]"),
    ],
)
def test_the_first_of_a_million_faults_is_enough(
    kind: type[ChatBody] | type[CompletionBody], fields: dict[str, Any], param: str
) -> None:
    """A list of all of them would take a gigabyte, and the event loop for seconds."""
    with pytest.raises(RequestError) as caught:
        parse(kind, json.dumps(fields).encode())
    assert caught.value.field == param
    fault = caught.value.__cause__
    assert isinstance(fault, ValidationError)
    assert fault.error_count() == 1
