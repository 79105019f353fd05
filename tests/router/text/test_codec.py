"""A model's text side does what its tokenizer and template say."""

import threading
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cluster.errors import Reason, RequestError
from router.text.codec import LONG_CHARS, TextCodec
from tests.tokenizers_fixture import (
    SAMPLE_TEXT,
    byte_level_tokenizer,
    model_card,
    sentencepiece_tokenizer,
)

BYTE_LEVEL = TextCodec(model_card(byte_level_tokenizer()))
SENTENCEPIECE = TextCodec(model_card(sentencepiece_tokenizer()))
any_codec = st.sampled_from([BYTE_LEVEL, SENTENCEPIECE])

MESSAGES = [{"role": "user", "content": "Grüße 🙂"}]


@given(any_codec, st.text(st.sampled_from(SAMPLE_TEXT)))
def test_text_survives_encoding(codec: TextCodec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


@given(any_codec, st.text(st.sampled_from(SAMPLE_TEXT)))
def test_the_bytes_of_tokens_add_up_to_the_text(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text, add_special_tokens=False)
    joined = b"".join(codec.token_bytes(token_id) for token_id in ids)
    space_put_first = b" " if text and codec is SENTENCEPIECE else b""
    assert joined == space_put_first + text.encode()


@given(any_codec, st.text(st.sampled_from(SAMPLE_TEXT)), st.text(st.sampled_from(SAMPLE_TEXT)))
def test_prompt_and_continuation_add_up_to_the_whole_text(
    codec: TextCodec, prompt: str, continuation: str
) -> None:
    """In particular a word at the border keeps the space before it."""
    prompt_ids = codec.encode(prompt)
    ids = codec.encode(continuation, add_special_tokens=False)
    detokenizer = codec.detokenizer(prompt_ids)
    continued = detokenizer.push(ids) + detokenizer.flush()
    assert codec.decode(prompt_ids) + continued == codec.decode(prompt_ids + ids)


def test_a_long_text_has_the_tokens_of_its_parts() -> None:
    words, times = " over the lazy dog", LONG_CHARS
    once = BYTE_LEVEL.encode(words, add_special_tokens=False)
    assert BYTE_LEVEL.encode(words * times, add_special_tokens=False) == once * times
    assert BYTE_LEVEL.encode(words * times) == BYTE_LEVEL.encode("") + once * times


def test_others_run_while_a_long_text_is_tokenized() -> None:
    """With the interpreter's lock held, this thread would get one turn or two."""
    encoding = threading.Thread(target=BYTE_LEVEL.encode, args=(SAMPLE_TEXT * 2000,))
    encoding.start()
    num_turns = 0
    while encoding.is_alive():
        num_turns += 1
    assert num_turns > 100


@given(any_codec, st.lists(st.integers(0, 5)), st.text(st.sampled_from(SAMPLE_TEXT)))
def test_the_first_text_of_a_prompt_stands_for_the_prompt(
    codec: TextCodec, prompt_ids: list[int], continuation: str
) -> None:
    ids = codec.encode(continuation, add_special_tokens=False)
    first = codec.first_text(prompt_ids)
    assert codec.detokenizer(first).push(ids) == codec.detokenizer(prompt_ids).push(ids)
    assert len(first) <= 1


def test_special_tokens_have_a_name_but_no_text() -> None:
    bos = BYTE_LEVEL.encode("")
    assert [BYTE_LEVEL.token_bytes(token_id) for token_id in bos] == [b"<|bos|>"]
    assert BYTE_LEVEL.decode(bos) == ""
    assert SENTENCEPIECE.token_bytes(2) == b"</s>"


def test_an_id_outside_the_vocabulary_is_no_text() -> None:
    assert BYTE_LEVEL.token_bytes(4_000_000_000) == b""
    assert BYTE_LEVEL.decode([4_000_000_000]) == ""


def test_a_chat_is_encoded_as_transformers_encodes_it() -> None:
    """In particular the beginning of the sequence is not marked twice."""
    template = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    card = model_card(byte_level_tokenizer(), chat_template=template)
    theirs = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=byte_level_tokenizer(), bos_token="<|bos|>", chat_template=template
    )
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert TextCodec(card).encode_chat(MESSAGES) == ids
    assert ids.count(0) == 1


def test_training_settings_of_a_tokenizer_neither_cut_nor_pad_prompts() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    codec = TextCodec(model_card(tokenizer))
    assert codec.encode(SAMPLE_TEXT) == BYTE_LEVEL.encode(SAMPLE_TEXT)
    assert codec.encode("a") == BYTE_LEVEL.encode("a")


@pytest.mark.parametrize(
    ("template", "problem"),
    [(None, "has no chat template"), ("\n{% for %}", "broken chat template: line 2")],
)
def test_a_model_without_a_working_template_refuses_chats(
    template: str | None, problem: str
) -> None:
    codec = TextCodec(model_card(byte_level_tokenizer(), chat_template=template))
    with pytest.raises(RequestError, match=problem) as caught:
        codec.encode_chat(MESSAGES)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_ARGUMENT, "model")


def test_a_tokenizer_that_cannot_be_read_is_refused() -> None:
    card = model_card(byte_level_tokenizer(), tokenizer_json="{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        TextCodec(card)
