"""Requests that follow from each other, described by pieces of text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import shake_128
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Made-up text: pieces of one key begin with the same tokens."""

    key: str
    length: int
    """In tokens."""

    def token_ids(self, vocab_size: int) -> list[int]:
        """Ids below `vocab_size`."""
        content = shake_128(self.key.encode()).digest(4 * self.length)
        ids: list[int] = (np.frombuffer(content, "<u4") % vocab_size).tolist()
        return ids


class Turn(NamedTuple):
    """A request: what was said before, the answer to that, and these pieces."""

    pieces: Sequence[Piece]
    output_tokens: int
    pause_s: float = 0.0
    """Between the last answer and this request; of a first turn 0."""


@dataclass(frozen=True, slots=True)
class Session:
    """One client's requests, each after the answer to the last."""

    session_id: str
    start_s: float
    """When the first one is due; of a workload made up, at a mean of one request per second."""
    turns: Sequence[Turn]

    def answer(self, turn: int) -> Piece:
        """What stands for a turn's answer where the true one is not known."""
        return Piece(f"{self.session_id}/answer {turn}", self.turns[turn].output_tokens)


def token_ids(pieces: Iterable[Piece], vocab_size: int) -> list[int]:
    """The pieces one after the other."""
    return [token for piece in pieces for token in piece.token_ids(vocab_size)]


def num_requests(sessions: Iterable[Session]) -> int:
    """Requests of all sessions."""
    return sum(len(session.turns) for session in sessions)
