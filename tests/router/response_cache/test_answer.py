"""Answers come back as they were kept, or not at all."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.internal.v1 import answer_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from router.response_cache.answer import BrokenAnswerError, Recording, seal, unseal
from tests.router.fake_replica import logprob

LARGE = 2**20
WORDS = st.lists(st.text(max_size=5), min_size=1, max_size=100)


def messages_of(words: Sequence[str], index: int = 0) -> list[pb.GenerateResponse]:
    """A sample of a token a word, each in a message of its own."""
    deltas = [
        pb.Delta(index=index, text=word, token_ids=[position], logprobs=[logprob(position)])
        for position, word in enumerate(words)
    ]
    deltas[-1].finish_reason = pb.FINISH_REASON_STOP
    deltas[-1].stop_token_id = 9
    return [pb.GenerateResponse(request_id="r", delta=delta) for delta in deltas]


def record(
    messages: Sequence[pb.GenerateResponse], n: int = 1, max_bytes: int = LARGE
) -> Recording:
    recording = Recording(n, max_bytes)
    for message in messages:
        recording.add(message)
    return recording


def joined(deltas: Sequence[pb.Delta], index: int = 0) -> pb.Delta:
    """All deltas of a sample as one."""
    whole = pb.Delta()
    text = "".join(delta.text for delta in deltas if delta.index == index)
    for delta in deltas:
        if delta.index == index:
            whole.MergeFrom(delta)
    whole.text = text
    return whole


def whole(recording: Recording) -> internal.Answer:
    answer = recording.whole()
    assert answer is not None
    return answer


@given(samples=st.lists(WORDS, min_size=1, max_size=3))
def test_a_recorded_answer_is_the_same_in_larger_pieces(samples: list[list[str]]) -> None:
    fresh = [message for i, words in enumerate(samples) for message in messages_of(words, i)]
    answer = whole(record(fresh, n=len(samples)))
    kept = unseal(b"key", seal(b"key", answer))
    for index, words in enumerate(samples):
        assert joined(kept.deltas, index) == joined([m.delta for m in fresh], index)
        pieces = [delta for delta in kept.deltas if delta.index == index]
        assert len(pieces) == -(-len(words) // 16)
        assert all(len(piece.token_ids) <= 16 for piece in pieces)


def test_log_probabilities_of_the_prompt_are_kept() -> None:
    fresh = messages_of(["a"])
    fresh[0].prompt_logprobs.extend([logprob(1), logprob(2)])
    assert [*whole(record(fresh)).prompt_logprobs] == [*fresh[0].prompt_logprobs]


def test_an_answer_that_is_not_whole_is_none() -> None:
    assert record(messages_of(["a", "b"])[:1]).whole() is None
    assert record(messages_of(["a", "b"]), n=2).whole() is None


def test_an_answer_with_a_failed_sample_is_none() -> None:
    fresh = [*messages_of(["a"]), *messages_of(["b"], 1)]
    fresh[0].delta.finish_reason = pb.FINISH_REASON_ERROR
    assert record(fresh, n=2).whole() is None


def test_an_answer_that_is_too_large_is_none() -> None:
    fresh = messages_of(["word"] * 50)
    size = sum(message.delta.ByteSize() for message in fresh)
    assert record(fresh, max_bytes=size).whole() is not None
    recording = record(fresh, max_bytes=size - 1)
    assert recording.is_too_large
    assert recording.whole() is None


@given(words=WORDS, data=st.data())
def test_a_value_that_is_not_what_was_written_is_broken(
    words: list[str], data: st.DataObject
) -> None:
    value = seal(b"key", whole(record(messages_of(words))))
    position = data.draw(st.integers(0, len(value) - 1))
    changed = bytearray(value)
    changed[position] ^= data.draw(st.integers(1, 255))
    for broken in (bytes(changed), value[:position], value + b"\0", b""):
        with pytest.raises(BrokenAnswerError):
            unseal(b"key", broken)
    with pytest.raises(BrokenAnswerError):
        unseal(b"other key", value)
