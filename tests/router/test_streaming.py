"""Answers reach the client whole: text, tokens, log-probabilities, usage and timings."""

import asyncio

import pytest
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from cluster.model_card import ModelCard
from router.text.codec import TextCodec
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, text_of, tokens_of


def answer(codec: TextCodec, text: str, **script: object) -> Script:
    return Script(answer=codec.encode(text, add_special_tokens=False), **script)  # type: ignore[arg-type]


async def test_text_and_tokens_add_up(
    client: Client, replica: FakeReplica, codec: TextCodec
) -> None:
    replica.script = answer(codec, "The quick 🙂 fox")
    messages = await client.generate("hello")
    assert text_of(messages) == "The quick 🙂 fox"
    assert tokens_of(messages) == replica.script.answer
    assert {message.model for message in messages} == {"tiny"}
    assert len({message.request_id for message in messages}) == 1


async def test_a_character_is_never_split(
    client: Client, replica: FakeReplica, codec: TextCodec
) -> None:
    replica.script = answer(codec, "🙂")
    messages = await client.generate("hello")
    assert len(replica.script.answer) > 1
    assert [m.delta.text for m in messages if m.delta.text] == ["🙂"]


async def test_last_message_carries_usage_and_timings(client: Client, codec: TextCodec) -> None:
    *deltas, last = await client.generate("hello")
    assert not last.HasField("delta")
    assert last.usage == pb.Usage(
        prompt_tokens=len(codec.encode("hello")), completion_tokens=4, cached_prompt_tokens=2
    )
    queue, first, total = (
        duration.ToNanoseconds()
        for duration in (
            last.timings.queue,
            last.timings.time_to_first_token,
            last.timings.total,
        )
    )
    assert 0 < queue <= first <= total
    assert not any(message.HasField("usage") for message in deltas)


async def test_each_sample_ends_with_a_finish_reason(client: Client) -> None:
    messages = await client.generate(n=3)
    for index in range(3):
        deltas = [m.delta for m in messages if m.HasField("delta") and m.delta.index == index]
        assert [d.finish_reason for d in deltas[:-1]] == [0] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == pb.FINISH_REASON_LENGTH
        assert tokens_of(messages, index) == [10, 11, 12, 13]
    assert messages[-1].usage.completion_tokens == 12


async def test_stop_token_is_a_token_and_no_text(
    client: Client, replica: FakeReplica, codec: TextCodec
) -> None:
    stop = codec.encode("!", add_special_tokens=False)[0]
    replica.script = answer(codec, "done", stop_token_id=stop)
    messages = await client.generate()
    assert text_of(messages) == "done"
    assert tokens_of(messages)[-1] == stop
    assert messages[-2].delta.finish_reason == pb.FINISH_REASON_STOP
    assert messages[-2].delta.stop_token_id == stop


async def test_stop_string_across_tokens_ends_the_request_in_the_engine(
    client: Client, replica: FakeReplica, codec: TextCodec
) -> None:
    replica.script = answer(codec, "one two three four five six", pause_after=20)
    stop = sampling_pb2.StopConditions(stop_strings=["o three f"])
    messages = await client.generate(stop=stop)
    assert text_of(messages) == "one tw"
    delta = messages[-2].delta
    assert (delta.finish_reason, delta.stop_string) == (pb.FINISH_REASON_STOP, "o three f")
    assert messages[-1].usage.completion_tokens == len(tokens_of(messages))
    assert tokens_of(messages) == replica.script.answer[: len(tokens_of(messages))]
    await replica.until(lambda r: r.cancels == [r.submits[0].handle])


async def test_stop_strings_stay_at_the_router(client: Client, replica: FakeReplica) -> None:
    await client.generate(stop=sampling_pb2.StopConditions(stop_strings=["x"], max_tokens=3))
    stop = replica.submits[0].stop
    assert (list(stop.stop_strings), stop.max_tokens) == ([], 3)


async def test_logprobs_carry_the_tokens_bytes(client: Client, codec: TextCodec) -> None:
    options = sampling_pb2.LogprobsOptions(top_logprobs=1, prompt_top_logprobs=1)
    messages = await client.generate("hello", logprobs=options)
    logprobs = [logprob for message in messages for logprob in message.delta.logprobs]
    assert [logprob.token.token_id for logprob in logprobs] == [10, 11, 12, 13]
    assert [logprob.top[0].text for logprob in logprobs] == [
        codec.token_bytes(token_id) for token_id in (10, 11, 12, 13)
    ]
    prompt = messages[0].prompt_logprobs
    assert [logprob.token.token_id for logprob in prompt] == codec.encode("hello")[1:]
    assert prompt[0].token.text == codec.token_bytes(prompt[0].token.token_id)
    assert not any(message.prompt_logprobs for message in messages[1:])


async def test_chat_is_rendered_by_the_template(
    client: Client, replica: FakeReplica, codec: TextCodec
) -> None:
    messages = [pb.ChatMessage(role="user", content="hi")]
    stream = client.stub.Chat(pb.ChatRequest(model="tiny", messages=messages))
    assert tokens_of([message async for message in stream]) == [10, 11, 12, 13]
    expected = codec.encode_chat([{"role": "user", "content": "hi"}])
    assert list(replica.submits[0].prompt_token_ids) == expected


async def test_a_missing_seed_is_drawn_and_a_given_one_kept(
    client: Client, replica: FakeReplica
) -> None:
    await client.generate()
    await client.generate()
    await client.generate(sampling=sampling_pb2.SamplingParams(seed=7))
    seeds = [submit.sampling.seed for submit in replica.submits]
    assert all(submit.sampling.HasField("seed") for submit in replica.submits)
    assert seeds[0] != seeds[1]
    assert seeds[2] == 7


async def test_max_tokens_defaults_to_the_room_in_the_context(
    client: Client, replica: FakeReplica, card: ModelCard
) -> None:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5] * 500))
    assert [message async for message in client.stub.Generate(request)]
    assert replica.submits[0].stop.max_tokens == card.max_model_len - 500


async def test_token_ids_pass_as_they_are(client: Client, replica: FakeReplica) -> None:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[7, 8, 9]))
    assert [message async for message in client.stub.Generate(request)]
    assert list(replica.submits[0].prompt_token_ids) == [7, 8, 9]


async def test_a_client_that_does_not_read_holds_up_nobody(
    client: Client, replica: FakeReplica
) -> None:
    replica.script = Script(answer=[300] * 400)
    request = pb.GenerateRequest(prompt="x", options=pb.RequestOptions(n=64))
    slow = client.stub.Generate(request)
    await replica.until(lambda r: len(r.submits) == 1)
    async with asyncio.timeout(20):
        assert tokens_of(await client.generate()) == [300] * 400
    slow.cancel()


async def test_tokenize_and_detokenize_are_inverse(client: Client) -> None:
    text = "naïve café 🙂"
    tokenized = await client.stub.Tokenize(
        pb.TokenizeRequest(model="tiny", text=text, no_special_tokens=True)
    )
    back = await client.stub.Detokenize(pb.DetokenizeRequest(token_ids=tokenized.token_ids))
    assert (back.text, back.model) == (text, "tiny")


async def test_models_are_listed(client: Client, card: ModelCard) -> None:
    listed = await client.stub.ListModels(pb.ListModelsRequest())
    assert list(listed.models) == [
        pb.Model(
            name="tiny",
            max_model_len=card.max_model_len,
            vocab_size=card.vocab_size,
            ready_replicas=1,
        )
    ]


@pytest.mark.parametrize("size", [1, 3, 100])
async def test_tokens_per_output_make_no_difference(
    client: Client, replica: FakeReplica, codec: TextCodec, size: int
) -> None:
    replica.script = answer(codec, "to be or not to be", tokens_per_output=size)
    stop = sampling_pb2.StopConditions(stop_strings=["not t"])
    messages = await client.generate(stop=stop)
    assert text_of(messages) == "to be or "
