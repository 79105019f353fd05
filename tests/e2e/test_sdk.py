"""The SDK against a whole cluster."""

import math

import pytest
from trunkline import (
    AsyncClient,
    Client,
    FinishReason,
    InvalidArgumentError,
    Message,
    ModelNotFoundError,
)

from tests.e2e.cluster import Cluster

PROMPT = "The list type"
TALK = [Message("user", "What is a list?")]


def test_a_stream_adds_up_to_the_text_and_its_tokens(client: Client) -> None:
    stream = client.generate(PROMPT, max_tokens=12, temperature=0, ignore_eos=True)
    deltas = list(stream)
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert len(token_ids) == 12
    assert "".join(delta.text for delta in deltas) == client.detokenize(token_ids)
    assert [delta.finish_reason for delta in deltas][-1] is FinishReason.LENGTH
    assert stream.model == "demo"
    assert stream.usage.prompt_tokens == len(client.tokenize(PROMPT))
    assert stream.usage.completion_tokens == 12
    assert 0 <= stream.timings.queue_s <= stream.timings.time_to_first_token_s
    assert stream.timings.time_to_first_token_s <= stream.timings.total_s


async def test_the_async_client_says_the_same(client: Client, cluster: Cluster) -> None:
    expected = client.generate(PROMPT, max_tokens=12, seed=5).text()
    answer = client.chat(TALK, max_tokens=12, seed=5).text()
    async with AsyncClient(cluster.grpc) as aio:
        assert await aio.generate(PROMPT, max_tokens=12, seed=5).text() == expected
        texts = [delta.text async for delta in aio.chat(TALK, max_tokens=12, seed=5)]
        assert "".join(texts) == answer
        assert await aio.detokenize(await aio.tokenize(PROMPT)) == client.detokenize(
            client.tokenize(PROMPT)
        )


def test_a_text_survives_the_way_to_tokens_and_back(client: Client) -> None:
    text = "def naïve(x):\n    return '☃ 🦀'  # done\n"
    ids = client.tokenize(text, special_tokens=False)
    assert client.detokenize(ids) == text


def test_a_conversation_is_rendered_before_it_is_tokenized(client: Client) -> None:
    rendered = client.detokenize(client.tokenize(TALK))
    assert TALK[0].content in rendered
    assert client.chat(TALK, max_tokens=1).text() is not None
    by_tokens = client.generate(client.tokenize(TALK), max_tokens=8, temperature=0).text()
    assert client.chat(TALK, max_tokens=8, temperature=0).text() == by_tokens


def test_samples_differ_and_are_told_apart(client: Client) -> None:
    stream = client.generate(PROMPT, max_tokens=12, n=3, seed=1, ignore_eos=True)
    texts = stream.texts()
    assert len(set(texts)) == 3
    assert stream.usage.completion_tokens == 36


def test_logprobs_are_those_of_the_tokens(client: Client) -> None:
    stream = client.generate(PROMPT, max_tokens=6, temperature=0, logprobs=3, prompt_logprobs=1)
    deltas = list(stream)
    logprobs = [logprob for delta in deltas for logprob in delta.logprobs]
    assert [one.token.token_id for one in logprobs] == [i for d in deltas for i in d.token_ids]
    for one in logprobs:
        assert one.token == one.top[0]
        assert len(one.top) == 3
        assert sum(math.exp(candidate.logprob) for candidate in one.top) <= 1.0001
    assert len(stream.prompt_logprobs) == stream.usage.prompt_tokens - 1


def test_a_stop_string_ends_the_sample_and_is_not_part_of_it(client: Client) -> None:
    whole = client.generate(PROMPT, max_tokens=24, temperature=0).text()
    # Between two tokens as often as not.
    stop = whole[7:12]
    deltas = list(client.generate(PROMPT, max_tokens=24, temperature=0, stop=stop))
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason is FinishReason.STOP
    assert deltas[-1].stopped_by == stop


def test_the_model_is_listed_with_its_replicas(client: Client) -> None:
    [model] = client.models()
    assert (model.name, model.ready_replicas) == ("demo", 2)
    assert (model.max_model_len, model.vocab_size) == (2048, 4096)


def test_errors_are_typed_and_name_the_field(client: Client) -> None:
    with pytest.raises(InvalidArgumentError) as invalid:
        client.generate(PROMPT, top_p=2.0).text()
    assert invalid.value.field == "options.sampling.top_p"
    with pytest.raises(ModelNotFoundError):
        client.generate(PROMPT, model="nope").text()
    with pytest.raises(InvalidArgumentError) as too_long:
        client.generate([5] * 2048).text()
    assert "2048" in too_long.value.message


def test_a_long_prompt_is_found_in_the_cache_the_second_time(client: Client) -> None:
    prompt = "The same long beginning of a prompt. " * 24

    def cached() -> int:
        stream = client.generate(prompt, max_tokens=1)
        stream.text()
        assert stream.usage.cached_prompt_tokens < stream.usage.prompt_tokens
        return stream.usage.cached_prompt_tokens

    assert cached() == 0
    # Replicas are drawn where they have equally little to do; after three one has come twice.
    assert max(cached(), cached()) > 100
