"""Detokenizing in pieces gives the text of the whole."""

import tracemalloc
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from router.text.detokenizer import Detokenizer
from router.text.pieces import Pieces
from tests.tokenizers_fixture import (
    SAMPLE_TEXT,
    byte_level_tokenizer,
    metaspace_tokenizer,
    sentencepiece_tokenizer,
)

BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE = sentencepiece_tokenizer()
METASPACE = metaspace_tokenizer()
PIECES = {
    id(tokenizer): Pieces.of(tokenizer) for tokenizer in (BYTE_LEVEL, SENTENCEPIECE, METASPACE)
}

any_tokenizer = st.sampled_from([BYTE_LEVEL, SENTENCEPIECE, METASPACE])
any_ids = st.lists(st.integers(0, 420))
"""Ids of text, bytes, special tokens and none at all."""
cuts = st.lists(st.integers(0, 60), max_size=8)


def detokenize(tokenizer: Tokenizer, parts: Sequence[Sequence[int]]) -> list[str]:
    detokenizer = Detokenizer(PIECES[id(tokenizer)])
    return [*(detokenizer.push(part) for part in parts), detokenizer.flush()]


def split(ids: Sequence[int], at: Sequence[int]) -> list[Sequence[int]]:
    edges = [0, *sorted(min(cut, len(ids)) for cut in at), len(ids)]
    return [ids[start:end] for start, end in pairwise(edges)]


@given(any_tokenizer, any_ids, cuts)
def test_any_split_of_any_ids_gives_the_same_text(
    tokenizer: Tokenizer, ids: list[int], at: list[int]
) -> None:
    assert "".join(detokenize(tokenizer, split(ids, at))) == "".join(detokenize(tokenizer, [ids]))


@given(any_ids)
def test_byte_level_text_is_what_the_tokenizer_itself_decodes(ids: list[int]) -> None:
    assert "".join(detokenize(BYTE_LEVEL, [[i] for i in ids])) == BYTE_LEVEL.decode(ids)


@given(
    st.sampled_from([SENTENCEPIECE, METASPACE]),
    st.lists(
        st.one_of(
            st.sampled_from([*range(3), *range(259, 420)]).map(lambda i: [i]),
            st.characters(codec="utf-8").map(lambda c: [3 + byte for byte in c.encode()]),
        )
    ),
)
def test_sentencepiece_text_is_what_the_tokenizer_itself_decodes(
    tokenizer: Tokenizer, groups: list[list[int]]
) -> None:
    """For bytes that form characters; the library turns whole runs around a bad byte to U+FFFD."""
    ids = [token_id for group in groups for token_id in group]
    assert "".join(detokenize(tokenizer, [[i] for i in ids])) == tokenizer.decode(ids)


@given(any_tokenizer, st.text(st.sampled_from(SAMPLE_TEXT)), cuts)
def test_nothing_is_returned_before_its_character_is_whole(
    tokenizer: Tokenizer, text: str, at: list[int]
) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = detokenize(tokenizer, split(ids, at))
    assert "�" not in "".join(parts)
    assert "".join(parts) == tokenizer.decode(ids)
    assert parts[-1] == ""


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE, METASPACE])
def test_bad_bytes_spoil_no_neighbours(tokenizer: Tokenizer) -> None:
    pieces = PIECES[id(tokenizer)]
    of_byte = {
        pieces[token_id]: token_id for token_id in range(3, 420) if len(pieces[token_id]) == 1
    }
    ids = [of_byte[bytes([byte])] for byte in b"a\xffb\xe2\x82c\xe2\x82\xac"]
    assert detokenize(tokenizer, [[i] for i in ids]) == [
        *("a", "�", "b", "", "", "�c", "", "", "€", ""),
    ]


def test_an_endless_run_of_bad_bytes_is_not_kept() -> None:
    """What is held back stays at three bytes, so that a push costs the same at any length."""
    pieces = PIECES[id(BYTE_LEVEL)]
    bad = next(token_id for token_id in range(420) if pieces[token_id] == b"\xff")
    detokenizer = Detokenizer(pieces)
    detokenizer.push([bad])
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    assert all(detokenizer.push([bad]) == "�" for _ in range(20_000))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 10_000


def test_a_decoder_of_another_kind_is_named() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match=r"tokenizer decoder: got .*WordPiece.*, expected"):
        Pieces.of(tokenizer)
