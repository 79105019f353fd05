"""The client, over a real connection."""

import gc
from collections.abc import Iterator

import pytest
from trunkline import (
    CacheSource,
    Client,
    DeadlineExceededError,
    Delta,
    FinishReason,
    Message,
    Model,
    RequestCancelledError,
    Timings,
    Usage,
)
from trunkline.requests import Conversation

from tests.proto.fake_inference import WORDS, FakeInference

WAIT_S = 30


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def test_deltas_come_one_by_one_before_the_answer_is_whole(
    service: FakeInference, client: Client
) -> None:
    service.flow.clear()
    stream = client.generate("Once", max_tokens=2)
    assert next(stream) == Delta(" one", (0,))
    service.flow.set()
    assert list(stream) == [Delta(" two", (1,), finish_reason=FinishReason.LENGTH)]


def test_text_returns_what_was_read_before_and_what_is_left(client: Client) -> None:
    stream = client.generate("Once", max_tokens=4)
    next(stream)
    assert stream.text() == " one two three four"
    assert stream.text() == " one two three four"


def test_texts_keeps_samples_apart(client: Client) -> None:
    assert client.generate("Once", n=3, max_tokens=2).texts() == [" one two"] * 3


def test_the_end_tells_usage_and_timings(client: Client) -> None:
    stream = client.generate("Once", max_tokens=3, request_id="mine")
    assert stream.request_id == "mine"
    with pytest.raises(RuntimeError, match="read to its end"):
        _ = stream.usage
    stream.text()
    assert stream.usage == Usage(prompt_tokens=2, completion_tokens=3, cached_prompt_tokens=0)
    assert stream.timings == Timings(queue_s=0.25, time_to_first_token_s=0.5, total_s=2.0)
    assert (stream.request_id, stream.model) == ("mine", "fake")
    assert stream.cache_source is None


def test_the_end_tells_whether_the_answer_was_kept(client: Client) -> None:
    stream = client.generate("Once", max_tokens=3, seed=1)
    with pytest.raises(RuntimeError, match="read to its end"):
        _ = stream.cache_source
    stream.text()
    assert stream.cache_source is CacheSource.EXACT


def test_the_server_names_a_request_that_has_no_name(client: Client) -> None:
    stream = client.generate("Once")
    next(stream)
    assert stream.request_id == "drawn-by-the-server"


def test_logprobs_stand_beside_their_tokens(client: Client) -> None:
    for delta in client.generate("Once", logprobs=0):
        assert [entry.token.token_id for entry in delta.logprobs] == list(delta.token_ids)
        assert delta.logprobs[0].token.text == delta.text.encode()


def test_prompts_are_text_or_token_ids(service: FakeInference, client: Client) -> None:
    client.generate("Once", model="fake").text()
    client.generate((5, 6, 7)).text()
    client.generate([]).text()
    texts, ids, nothing = service.generations
    assert (texts.model, texts.prompt) == ("fake", "Once")
    assert list(ids.token_ids.ids) == [5, 6, 7]
    assert nothing.WhichOneof("input") == "token_ids"


def test_chat_sends_the_conversation(service: FakeInference, client: Client) -> None:
    turns: Conversation = [Message("system", "Be brief."), {"role": "user", "content": "Hello!"}]
    assert client.chat(turns).text() == "".join(WORDS)
    assert [(turn.role, turn.content) for turn in service.conversations[0].messages] == [
        ("system", "Be brief."),
        ("user", "Hello!"),
    ]


def test_tokenize_and_detokenize(client: Client) -> None:
    assert client.tokenize("é") == [0, *"é".encode()]
    assert client.tokenize("é", special_tokens=False) == list("é".encode())
    assert client.tokenize([Message("user", "x")]) == [0, *b"<user>x"]
    assert client.detokenize(list("é".encode())) == "é"


def test_models(client: Client) -> None:
    assert client.models() == [Model("fake", 512, 256, 1)]


def test_closing_a_stream_cancels_its_request(service: FakeInference, client: Client) -> None:
    service.flow.clear()
    stream = client.generate("Once")
    next(stream)
    stream.close()
    assert service.ended.wait(WAIT_S)
    with pytest.raises(RequestCancelledError):
        stream.text()


def test_leaving_the_with_block_cancels(service: FakeInference, client: Client) -> None:
    service.flow.clear()
    with client.generate("Once") as stream:
        next(stream)
    assert service.ended.wait(WAIT_S)


def test_dropping_a_stream_cancels_its_request(service: FakeInference, client: Client) -> None:
    service.flow.clear()
    for _ in client.generate("Once"):
        break
    gc.collect()
    assert service.ended.wait(WAIT_S)


def test_closing_the_client_cancels_running_requests(
    service: FakeInference, client: Client
) -> None:
    service.flow.clear()
    stream = client.generate("Once")
    next(stream)
    client.close()
    with pytest.raises(RequestCancelledError):
        next(stream)
    assert service.ended.wait(WAIT_S)


def test_a_finished_stream_may_be_closed(client: Client) -> None:
    stream = client.generate("Once")
    stream.text()
    stream.close()
    assert stream.text() == "".join(WORDS)


def test_the_deadline_travels_and_ends_the_request(service: FakeInference, client: Client) -> None:
    service.flow.clear()
    with pytest.raises(DeadlineExceededError) as caught:
        client.generate("Once", timeout_s=0.5).text()
    assert isinstance(caught.value, TimeoutError)
    assert service.ended.wait(WAIT_S)
    (left_s,) = service.time_left_s
    assert left_s is not None
    assert left_s < 1  # gRPC rounds timeouts up on their way


def test_without_a_deadline_requests_may_take_long(service: FakeInference, client: Client) -> None:
    client.generate("Once").text()
    (left_s,) = service.time_left_s
    assert left_s is None or left_s > 10**6
