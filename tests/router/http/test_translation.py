"""Every field of a body reaches the contract's message."""

from typing import Any

import httpx
import pytest
from google.protobuf import json_format

from tests.router.http.fake_service import FakeService


def sent(http: httpx.Client, service: FakeService, path: str, body: dict[str, Any]) -> Any:
    """The contract's message for `body`, as a dictionary."""
    response = http.post(f"/v1/{path}", json=body, headers={"x-request-id": "mine"})
    assert response.status_code == 200, response.text
    assert response.headers["x-request-id"] == "mine"
    return json_format.MessageToDict(service.requests[-1], preserving_proto_field_name=True)


CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "tiny", "prompt": "hi"}


def test_the_least_chat(http: httpx.Client, service: FakeService) -> None:
    assert sent(http, service, "chat/completions", CHAT) == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "options": {"request_id": "mine", "sampling": {}, "stop": {}, "logprobs": {}, "n": 1},
    }


def test_the_least_completion_has_openais_limit(http: httpx.Client, service: FakeService) -> None:
    assert sent(http, service, "completions", TEXT) == {
        "model": "tiny",
        "prompt": "hi",
        "options": {
            "request_id": "mine.0",
            "sampling": {},
            "stop": {"max_tokens": 16},
            "logprobs": {},
            "n": 1,
        },
    }


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"n": 3}, {"n": 3}),
        ({"priority": -7}, {"priority": -7}),
        ({"timeout_s": 1.5}, {"timeout": "1.500s"}),
        ({"metadata": {"a": "b"}, "user": "me"}, {"metadata": {"a": "b", "user": "me"}}),
        ({"temperature": 0}, {"sampling": {"temperature": 0.0}}),
        ({"top_p": 0.5}, {"sampling": {"top_p": 0.5}}),
        ({"top_k": 5}, {"sampling": {"top_k": 5}}),
        ({"top_k": -1}, {"sampling": {"top_k": 0}}),
        ({"min_p": 0.25}, {"sampling": {"min_p": 0.25}}),
        ({"repetition_penalty": 1.5}, {"sampling": {"repetition_penalty": 1.5}}),
        ({"frequency_penalty": -1}, {"sampling": {"frequency_penalty": -1.0}}),
        ({"presence_penalty": 2}, {"sampling": {"presence_penalty": 2.0}}),
        ({"logit_bias": {"5": -100}}, {"sampling": {"logit_bias": {"5": -100.0}}}),
        ({"allowed_token_ids": [1, 2]}, {"sampling": {"allowed_token_ids": [1, 2]}}),
        ({"seed": 7}, {"sampling": {"seed": "7"}}),
        ({"seed": -1}, {"sampling": {"seed": str(2**64 - 1)}}),
        ({"max_tokens": 1}, {"stop": {"max_tokens": 1}}),
        ({"min_tokens": 1}, {"stop": {"min_tokens": 1}}),
        ({"stop": "x"}, {"stop": {"stop_strings": ["x"]}}),
        ({"stop": ["x", "y"]}, {"stop": {"stop_strings": ["x", "y"]}}),
        ({"stop": []}, {"stop": {}}),
        ({"stop_token_ids": [5]}, {"stop": {"stop_token_ids": [5]}}),
        ({"ignore_eos": True}, {"stop": {"ignore_eos": True}}),
        ({"prompt_logprobs": 2}, {"logprobs": {"prompt_top_logprobs": 2}}),
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_fields_of_both_kinds(
    http: httpx.Client,
    service: FakeService,
    path: str,
    fields: dict[str, Any],
    options: dict[str, Any],
) -> None:
    body = CHAT if path.startswith("chat") else TEXT
    got = sent(http, service, path, body | fields)["options"]
    for name, value in options.items():
        if isinstance(value, dict) and name != "metadata":
            assert got[name] | value == got[name]
        else:
            assert got[name] == value


@pytest.mark.parametrize(
    ("path", "fields", "logprobs"),
    [
        ("chat/completions", {"logprobs": True}, {"top_logprobs": 0}),
        ("chat/completions", {"logprobs": True, "top_logprobs": 4}, {"top_logprobs": 4}),
        ("chat/completions", {"logprobs": False, "top_logprobs": 0}, {}),
        ("completions", {"logprobs": 0}, {"top_logprobs": 0}),
        (
            "completions",
            {"logprobs": 3, "echo": True},
            {"top_logprobs": 3, "prompt_top_logprobs": 3},
        ),
    ],
)
def test_logprobs_of_each_kind(
    http: httpx.Client,
    service: FakeService,
    path: str,
    fields: dict[str, Any],
    logprobs: dict[str, int],
) -> None:
    body = CHAT if path.startswith("chat") else TEXT
    assert sent(http, service, path, body | fields)["options"]["logprobs"] == logprobs


def test_messages(http: httpx.Client, service: FakeService) -> None:
    """Parts of text are joined; the newer name of the system's turn becomes the usual one."""
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
        {
            "role": "user",
            "name": "me",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    ]
    body = {"messages": messages, "max_completion_tokens": 1}
    got = sent(http, service, "chat/completions", body)
    assert got["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "assistant"},
        {"role": "user", "name": "me", "content": "ab"},
    ]
    assert got["options"]["stop"] == {"max_tokens": 1}
    assert "model" not in got


@pytest.mark.parametrize(
    "fields",
    [
        {"store": False, "service_tier": "auto", "prompt_cache_key": "x"},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
        {"response_format": {"type": "text"}, "modalities": ["text"], "safety_identifier": "x"},
        {
            "tools": None,
            "stop": None,
            "temperature": None,
            "n": None,
            "stream": None,
            "audio": None,
        },
    ],
)
def test_fields_that_change_nothing_are_accepted(
    http: httpx.Client, service: FakeService, fields: dict[str, Any]
) -> None:
    assert sent(http, service, "chat/completions", CHAT | fields) == sent(
        http, service, "chat/completions", CHAT
    )


def test_the_call_knows_the_client(http: httpx.Client, service: FakeService) -> None:
    sent(http, service, "completions", TEXT)
    assert service.calls[-1].peer.startswith("127.0.0.1:")


def test_a_request_id_that_is_not_fit_for_logs_is_replaced(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json=TEXT, headers={"x-request-id": "a b"})
    assert response.status_code == 200
    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
def test_our_own_headers_are_options_too(
    http: httpx.Client, service: FakeService, path: str, body: dict[str, Any]
) -> None:
    headers = {"x-trunkline-cache": "bypass", "x-trunkline-session": "mine"}
    assert http.post(f"/v1/{path}", json=body, headers=headers).status_code == 200
    options = service.requests[-1].options
    assert (options.no_response_cache, options.session_id) == (True, "mine")


@pytest.mark.parametrize(
    ("header", "value"), [("x-trunkline-cache", "on"), ("x-trunkline-session", "a b")]
)
def test_our_own_headers_are_checked(http: httpx.Client, header: str, value: str) -> None:
    response = http.post("/v1/completions", json=TEXT, headers={header: value})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == header
