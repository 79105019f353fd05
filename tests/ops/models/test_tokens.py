"""The demo tokenizer spells everything, and its template marks who speaks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from ops.models import resolve
from ops.models.tokens import SPECIAL_TOKENS, train_tokenizer

TOKENIZER = Tokenizer.from_file(str(resolve("demo") / "tokenizer.json"))


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    spoken = text
    for token in SPECIAL_TOKENS:
        spoken = spoken.replace(token, "")
    assert TOKENIZER.decode(ids) == spoken


@given(st.binary())
def test_every_byte_has_a_token(content: bytes) -> None:
    """Latin-1 text reaches all 256 bytes' worth of characters; none is unknown."""
    text = content.decode("latin-1")
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids) == text


def test_special_tokens_are_single_ids_in_front_of_all_others() -> None:
    assert [TOKENIZER.encode(t, add_special_tokens=False).ids for t in SPECIAL_TOKENS] == [
        [index] for index in range(len(SPECIAL_TOKENS))
    ]


def test_plain_prompts_begin_a_document() -> None:
    assert TOKENIZER.encode("import os").tokens[0] == "<|bos|>"


def test_the_chat_template_renders_all_roles() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("demo"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "What is os?"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|bos|><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
        "<|user|>\nWhat is os?<|end|>\n<|assistant|>\n"
    )


def test_the_chat_template_refuses_other_roles() -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("demo"))
    with pytest.raises(TemplateError, match="role: got wizard"):
        tokenizer.apply_chat_template([{"role": "wizard", "content": "Hi"}], tokenize=False)


def test_training_gives_the_same_tokenizer_again() -> None:
    texts = ["def area(width, height):\n    return width * height\n"] * 3
    first, second = (train_tokenizer(texts, 280).to_str() for _ in range(2))
    assert first == second
