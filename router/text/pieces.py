"""What each token id stands for in the text, in bytes."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Spell = Callable[[str], bytes]
"""From a token as the vocabulary writes it to the bytes that it adds to the text."""


class Pieces:
    """The bytes of every token of one vocabulary.

    Both kinds of vocabulary that causal language models use map tokens to bytes one by one:
    byte-level BPE writes each byte as a printable character (GPT-2's alphabet), SentencePiece
    writes spaces as `▁` and rare bytes as `<0xE2>`. So a text is the concatenation of its pieces,
    read as UTF-8; the one exception is the space that SentencePiece puts before every text, which
    `first` leaves out.

    Raises ValueError for a tokenizer.json whose decoder is of another kind.
    """

    def __init__(self, tokenizer: Tokenizer, decoder: Mapping[str, Any] | None) -> None:
        steps = _steps(decoder)
        self._tokenizer = tokenizer
        self._spell = _speller(steps)
        self._spell_first = _first_speller(steps, self._spell)
        self._specials = {
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.special
        }
        self._first: dict[int, bytes | None] = {}
        self._inner: dict[int, bytes] = {}
        self._spelled: dict[int, bytes] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Pieces":
        """The pieces of a tokenizer, by the decoder that it declares."""
        return cls(tokenizer, json.loads(tokenizer.to_str())["decoder"])

    def __getitem__(self, token_id: int) -> bytes:
        """The token's bytes inside a text; none if it is special or not in the vocabulary."""
        piece = self._inner.get(token_id)
        if piece is None:
            token = self._plain_token(token_id)
            if token is None:
                return b""
            piece = self._inner[token_id] = self._spell(token)
        return piece

    def first(self, token_id: int) -> bytes | None:
        """The token's bytes at the start of a text; None if the token is no text at all."""
        if token_id not in self._first:
            token = self._plain_token(token_id)
            self._first[token_id] = None if token is None else self._spell_first(token)
        return self._first[token_id]

    def spelled(self, token_id: int) -> bytes:
        """The token's bytes inside a text, special tokens as their name."""
        spelling = self._spelled.get(token_id)
        if spelling is None:
            token = self._tokenizer.id_to_token(token_id)
            if token is None:
                return b""
            spelling = token.encode() if token in self._specials else self._spell(token)
            self._spelled[token_id] = spelling
        return spelling

    def _plain_token(self, token_id: int) -> str | None:
        token = self._tokenizer.id_to_token(token_id)
        return None if token is None or token in self._specials else token


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A decoder as a flat list of steps, refused unless pieces can be told from it."""
    if decoder is None:
        raise ValueError("the tokenizer has no decoder, so its tokens cannot be turned into text")
    steps = list(_flatten(decoder))
    fused = False
    for step in steps:
        kind = step["type"]
        known = (
            (kind in {"ByteLevel", "ByteFallback", "Metaspace"} and not fused)
            or (kind == "Replace" and "String" in step["pattern"] and not fused)
            or (kind == "Strip" and fused and step["start"] <= 1 and step["stop"] == 0)
            or kind == "Fuse"
        )
        if not known:
            raise ValueError(
                f"tokenizer decoder: got {json.dumps(step, ensure_ascii=False)}, "
                "expected that of a byte-level BPE or of a SentencePiece vocabulary"
            )
        fused = fused or kind == "Fuse"
    return steps


def _flatten(decoder: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for step in decoder["decoders"]:
        yield from _flatten(step)


def _speller(steps: list[Mapping[str, Any]]) -> Spell:
    """How a token inside a text is spelled."""
    kinds = {step["type"] for step in steps}
    replacements = [
        (step["pattern"]["String"], step["content"]) for step in steps if step["type"] == "Replace"
    ] + [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]
    alphabet = byte_alphabet() if "ByteLevel" in kinds else None

    def spell(token: str) -> bytes:
        if "ByteFallback" in kinds and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        if alphabet is not None and all(character in alphabet for character in token):
            return bytes(alphabet[character] for character in token)
        return token.encode()

    return spell


def _first_speller(steps: list[Mapping[str, Any]], spell: Spell) -> Spell:
    """How the first token of a text is spelled, without the space put before every text."""
    for step in steps:
        if step["type"] == "Strip" and step["start"] == 1:
            space = step["content"].encode()
            return lambda token: spell(token).removeprefix(space)
        if step["type"] == "Metaspace" and step["prepend_scheme"] != "never":
            mark = step["replacement"]
            return lambda token: spell(token.replace(mark, ""))
    return spell


def byte_alphabet() -> dict[str, int]:
    """The characters with which byte-level BPE writes bytes (Radford et al. 2019, GPT-2).

    Printable Latin-1 characters stand for themselves, the other bytes in their order for the
    characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + offset): byte for offset, byte in enumerate(others)
    }
