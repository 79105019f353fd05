"""A sample's text and end do not depend on how its tokens arrive."""

import resource
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from router.sample import Sample
from router.text.codec import TextCodec
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

CODEC = TextCodec(model_card(byte_level_tokenizer()))
TOKEN_IDS = st.lists(st.integers(4, 398), min_size=1, max_size=40)


def run(
    token_ids: Sequence[int],
    stop: sampling_pb2.StopConditions,
    cuts: Sequence[int] = (),
    stop_token_id: int | None = None,
) -> tuple[str, list[int], pb.Delta]:
    """Text, tokens and last delta of a sample whose tokens arrive cut at `cuts`."""
    sample, text, tokens, delta = Sample(0, CODEC, [], stop), "", list[int](), pb.Delta()
    borders = sorted({cut for cut in cuts if 0 < cut < len(token_ids)} | {0, len(token_ids)})
    for start, end in pairwise(borders):
        output = internal.SampleOutput(token_ids=token_ids[start:end])
        if end == len(token_ids):
            output.finish_reason = pb.FINISH_REASON_LENGTH
            if stop_token_id is not None:
                output.finish_reason = pb.FINISH_REASON_STOP
                output.stop_token_id = stop_token_id
        delta = sample.push(output)
        text += delta.text
        tokens += delta.token_ids
        if sample.is_finished:
            break
    assert sample.is_finished
    assert sample.num_tokens == len(tokens)
    return text, tokens, delta


def encode(text: str) -> list[int]:
    return CODEC.encode(text, add_special_tokens=False)


@given(
    token_ids=TOKEN_IDS,
    stops=st.lists(st.text("abcdeft e", min_size=1, max_size=3), max_size=3),
    cuts=st.lists(st.integers(0, 40)),
    min_tokens=st.integers(0, 10),
)
def test_any_split_gives_the_same_sample(
    token_ids: list[int], stops: list[str], cuts: list[int], min_tokens: int
) -> None:
    stop = sampling_pb2.StopConditions(stop_strings=stops, min_tokens=min_tokens)
    text, tokens, delta = run(token_ids, stop)
    split_text, split_tokens, split_delta = run(token_ids, stop, cuts)
    assert (split_text, split_tokens) == (text, tokens)
    assert split_delta.finish_reason == delta.finish_reason
    assert split_delta.stop_string == delta.stop_string


@given(token_ids=TOKEN_IDS)
def test_without_stop_strings_the_text_is_that_of_the_tokens(token_ids: list[int]) -> None:
    text, tokens, delta = run(token_ids, sampling_pb2.StopConditions())
    assert (text, tokens) == (CODEC.decode(token_ids), token_ids)
    assert delta.finish_reason == pb.FINISH_REASON_LENGTH


@given(token_ids=TOKEN_IDS, stop=st.text("abcdeft ", min_size=1, max_size=3))
def test_a_stop_string_ends_the_text_before_it(token_ids: list[int], stop: str) -> None:
    text, tokens, delta = run(token_ids, sampling_pb2.StopConditions(stop_strings=[stop]))
    whole = CODEC.decode(token_ids)
    assert text == whole.partition(stop)[0]
    assert delta.HasField("stop_string") == (stop in whole)
    assert tokens == token_ids[: len(tokens)]


@given(token_ids=TOKEN_IDS, min_tokens=st.integers(0, 20))
def test_no_stop_string_ends_a_sample_before_min_tokens(
    token_ids: list[int], min_tokens: int
) -> None:
    stop = sampling_pb2.StopConditions(stop_strings=["e", "a", " "], min_tokens=min_tokens)
    _, tokens, _ = run(token_ids, stop)
    assert len(tokens) >= min(min_tokens, len(token_ids))


def test_the_token_that_completes_a_stop_string_is_the_last_one() -> None:
    token_ids = encode("The quick brown fox jumps")
    text, tokens, delta = run(token_ids, sampling_pb2.StopConditions(stop_strings=["quick b"]))
    assert text == "The "
    assert CODEC.decode(tokens[:-1]).find("quick b") == -1
    assert "quick b" in CODEC.decode(tokens)
    assert delta.finish_reason == pb.FINISH_REASON_STOP


def test_what_a_stop_string_held_back_comes_with_the_end() -> None:
    text, _, delta = run(
        encode("so it goes"), sampling_pb2.StopConditions(stop_strings=["goes on"])
    )
    assert text == "so it goes"
    assert not delta.HasField("stop_string")


@pytest.mark.parametrize("stops", [[], ["it"]])
def test_a_stop_token_adds_no_text(stops: list[str]) -> None:
    eos, token_ids = encode(" it")[-1], encode("so be")
    text, tokens, delta = run(
        [*token_ids, eos], sampling_pb2.StopConditions(stop_strings=stops), (), eos
    )
    assert (text, tokens) == ("so be", [*token_ids, eos])
    assert delta.stop_token_id == eos


def test_text_that_a_slow_client_has_not_taken_needs_memory_once() -> None:
    """A message keeps the memory of every value that a field of it has had."""
    token_ids = encode("The quick brown fox") * 5000
    sample = Sample(0, CODEC, [], sampling_pb2.StopConditions())
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    delta = sample.push(internal.SampleOutput(token_ids=token_ids))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert delta.text == "The quick brown fox" * 5000
    assert grown_kib < 100 * 1024
