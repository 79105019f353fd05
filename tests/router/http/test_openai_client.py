"""The official client understands everything that is answered."""

import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from trunkline.v1 import inference_pb2 as pb

from tests.router.http.fake_service import FakeService

HELLO: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "größe🙂"}]
ANSWER = "GRÖSSE🙂"


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (6, 7)
    assert answer.usage.total_tokens == 13
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 1
    assert answer.id == f"chatcmpl-{answer._request_id}"


def test_an_answer_can_be_sent_back_as_it_is(client: openai.OpenAI, service: FakeService) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    said = answer.choices[0].message
    client.chat.completions.create(model="tiny", messages=[*HELLO, said, *HELLO])  # type: ignore[list-item]
    sent = service.requests[-1]
    assert isinstance(sent, pb.ChatRequest)
    assert [message.content for message in sent.messages] == ["größe🙂", ANSWER, "größe🙂"]


def test_a_streamed_chat_adds_up(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        assert chunk.object == "chat.completion.chunk"
        assert chunk.id == last.id
        assert chunk.usage is None
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: ANSWER, 1: ANSWER}
    assert [chunk.choices[0].delta.role for chunk in chunks[:3]] == ["assistant", "assistant", None]
    assert [chunk.choices[0].finish_reason for chunk in chunks[-3:]] == [None, "stop", "stop"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 14


def test_usage_is_streamed_only_if_asked_for(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert all(chunk.choices and chunk.usage is None for chunk in stream)


async def test_the_asynchronous_client(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO)
        assert answer.choices[0].message.content == ANSWER
        stream = await client.completions.create(model="tiny", prompt="abc", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "ABC"
        assert [model.id async for model in client.models.list()] == ["tiny", "org/other"]


def test_the_helper_that_accumulates_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=HELLO, logprobs=True) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.message.content == ANSWER
    assert choice.logprobs is not None
    assert [token.token for token in choice.logprobs.content or []] == list(ANSWER)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    smiley = logprobs.content[-1]
    assert (smiley.token, smiley.logprob) == ("🙂", -0.5)
    assert bytes(smiley.bytes or ()).decode() == "🙂"
    assert [(top.token, top.logprob) for top in smiley.top_logprobs] == [("🙂", -0.5), ("a", -9999)]


def test_a_stop_string_ends_a_choice_and_is_named(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, stop=["SE", "X"])
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("GRÖS", "stop")
    assert choice.model_extra == {"stop_reason": "SE"}


def test_the_limit_of_tokens_ends_a_choice(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_completion_tokens=2)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("GR", "length")


@pytest.mark.parametrize("prompt", ["ab", ["ab", "cd"], [97, 98], [[97, 98], [99, 100]]])
@pytest.mark.parametrize("echo", [False, True])
def test_completions_of_every_kind_of_prompt(
    client: openai.OpenAI, prompt: str | list[str] | list[int] | list[list[int]], echo: bool
) -> None:
    prompts = ["ab", "cd"] if len(prompt) == 2 and not isinstance(prompt[0], int) else ["ab"]
    prompts = ["ab"] if isinstance(prompt, str) else prompts
    expected = [(p if echo else "") + p.upper() for p in prompts for _ in range(2)]
    answer = client.completions.create(model="tiny", prompt=prompt, n=2, echo=echo)
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4 * len(prompts)

    texts = [""] * len(expected)
    for chunk in client.completions.create(
        model="tiny", prompt=prompt, n=2, echo=echo, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


@pytest.mark.parametrize("streamed", [False, True])
def test_completion_logprobs_with_echo(client: openai.OpenAI, streamed: bool) -> None:
    """The prompt's first token has no probability; offsets count characters of the text."""
    lists: dict[str, list[object]] = {}
    if streamed:
        chunks = client.completions.create(
            model="tiny", prompt="ö🙂b", echo=True, logprobs=1, stream=True
        )
        parts = [chunk.choices[0].logprobs for chunk in chunks]
    else:
        answer = client.completions.create(model="tiny", prompt="ö🙂b", echo=True, logprobs=1)
        parts = [answer.choices[0].logprobs]
    for part in parts:
        assert part is not None
        for name, values in part.model_dump().items():
            lists.setdefault(name, []).extend(values)
    assert lists == {
        "tokens": ["ö", "🙂", "b", "Ö", "🙂", "B"],
        "token_logprobs": [None, -0.5, -0.5, -0.5, -0.5, -0.5],
        "top_logprobs": [None, *({token: -0.5} for token in "🙂bÖ🙂B")],
        "text_offset": [0, 1, 2, 3, 4, 5],
    }


def test_prompt_logprobs_have_the_form_that_vllm_users_know(client: openai.OpenAI) -> None:
    expected = [
        None,
        {
            "98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"},
            "97": {"logprob": -9999.0, "rank": 2, "decoded_token": "a"},
        },
    ]
    wish = {"prompt_logprobs": 2}
    chat = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "ab"}], extra_body=wish
    )
    assert chat.model_extra == {"prompt_logprobs": expected}
    text = client.completions.create(model="tiny", prompt="ab", extra_body=wish)
    assert (text.choices[0].model_extra or {})["prompt_logprobs"] == expected


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "org/other"]
    model = client.models.retrieve("org/other")
    assert (model.id, model.object, model.owned_by) == ("org/other", "model", "trunkline")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("missing")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("reason", "kind", "status"),
    [
        ("INVALID_ARGUMENT", openai.BadRequestError, 400),
        ("MODEL_NOT_FOUND", openai.NotFoundError, 404),
        ("QUEUE_FULL", openai.RateLimitError, 429),
        ("NO_REPLICA", openai.InternalServerError, 503),
        ("SHUTTING_DOWN", openai.InternalServerError, 503),
        ("DEADLINE_EXCEEDED", openai.InternalServerError, 504),
        ("INTERNAL", openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_its_status(
    client: openai.OpenAI,
    reason: str,
    kind: type[openai.APIStatusError],
    status: int,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model=f"refuse-{reason}", messages=HELLO, stream=stream)
    assert caught.value.status_code == status
    assert f"scripted {reason}" in caught.value.message
    assert caught.value.request_id
    expected = {"QUEUE_FULL": "2"}.get(reason)
    assert caught.value.response.headers.get("retry-after") == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_told_without_its_details(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="bug", prompt="ab", stream=stream)
    assert caught.value.code == "internal_error"
    assert "scripted" not in caught.value.message
    assert caught.value.request_id


def test_a_failure_in_mid_stream_is_an_event(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="fail-REPLICA_LOST", messages=HELLO, stream=True)
    assert next(stream).choices[0].delta.content == "G"
    with pytest.raises(openai.APIError, match="scripted REPLICA_LOST") as caught:
        next(stream)
    assert caught.value.code == "replica_lost"


def test_one_failed_sample_fails_the_answer(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="choice 1 of"):
        client.completions.create(model="broken", prompt="ab", n=2)


def test_one_failed_prompt_fails_the_answer_and_ends_the_others(
    client: openai.OpenAI, service: FakeService
) -> None:
    service.closed.clear()
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="silent", prompt=["ab", ""])
    assert caught.value.param == "prompt"
    assert service.closed.wait(timeout=60)
