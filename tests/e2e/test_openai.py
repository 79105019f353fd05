"""The official OpenAI client against a whole cluster."""

import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from tests.e2e.cluster import Cluster

PROMPT = "The list type"
TALK: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "What is a list?"}]


def test_a_chat_streamed_is_the_chat_in_one_piece(openai: OpenAI) -> None:
    whole = openai.chat.completions.create(model="demo", messages=TALK, max_tokens=12, seed=3)
    stream = openai.chat.completions.create(
        model="demo",
        messages=TALK,
        max_tokens=12,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_completion_streamed_is_the_completion_in_one_piece(openai: OpenAI) -> None:
    whole = openai.completions.create(model="demo", prompt=PROMPT, max_tokens=12, seed=3)
    stream = openai.completions.create(
        model="demo", prompt=PROMPT, max_tokens=12, seed=3, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    assert whole.choices[0].finish_reason in {"length", "stop"}


async def test_the_async_client_says_the_same(openai: OpenAI, cluster: Cluster) -> None:
    whole = openai.chat.completions.create(model="demo", messages=TALK, max_tokens=8, seed=3)
    async with AsyncOpenAI(base_url=f"{cluster.http}/v1", api_key="none") as aio:
        stream = await aio.chat.completions.create(
            model="demo", messages=TALK, max_tokens=8, seed=3, stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == whole.choices[0].message.content


def test_samples_differ_and_each_has_its_logprobs(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="demo", messages=TALK, max_tokens=8, n=3, seed=3, logprobs=True, top_logprobs=2
    )
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        spelt = b"".join(bytes(one.bytes or ()) for one in choice.logprobs.content)
        # The token that ended the sample has a log-probability and no text.
        assert spelt.decode(errors="replace").startswith((choice.message.content or "")[:-1])
        assert all(len(one.top_logprobs) == 2 for one in choice.logprobs.content)


def test_a_stop_string_ends_the_completion(openai: OpenAI) -> None:
    whole = openai.completions.create(model="demo", prompt=PROMPT, max_tokens=24, temperature=0)
    text = whole.choices[0].text
    cut = openai.completions.create(
        model="demo", prompt=PROMPT, max_tokens=24, temperature=0, stop=[text[7:12]]
    )
    assert cut.choices[0].text == text[: text.index(text[7:12])]
    assert cut.choices[0].finish_reason == "stop"


def test_the_model_is_listed(openai: OpenAI) -> None:
    assert [model.id for model in openai.models.list()] == ["demo"]
    assert openai.models.retrieve("demo").id == "demo"


def test_errors_are_typed_and_name_the_field(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as invalid:
        openai.completions.create(model="demo", prompt=PROMPT, top_p=2.0)
    assert invalid.value.param == "top_p"
    with pytest.raises(NotFoundError):
        openai.completions.create(model="nope", prompt=PROMPT)
    with pytest.raises(APIStatusError) as late:
        openai.completions.create(
            model="demo",
            prompt=PROMPT,
            max_tokens=2000,
            extra_body={"timeout_s": 0.2, "ignore_eos": True},
        )
    assert late.value.status_code == 504
