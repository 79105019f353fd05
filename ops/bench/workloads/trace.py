"""Recorded traffic, as in the traces that were published with Mooncake (Qin et al. 2024)."""

import json
from pathlib import Path
from typing import Any

from ops.bench.workloads.session import Piece, Session, Turn

TOKENS_PER_ID = 512
_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


class TraceError(Exception):
    """A line that is no request."""


def read_trace(path: Path, seed: str, limit: int | None = None) -> list[Session]:
    """One session of one request for each line, in order of time; the first at 0 s.

    Other seeds give other tokens.

    A line is a JSON object: `timestamp` (or `timestamp_ms`) in milliseconds, `input_length` and
    `output_length` in tokens, and `hash_ids`, one for each 512 tokens of the prompt: equal ids are
    equal tokens. Reads `limit` requests, if given. Raises OSError, and TraceError that names the
    line.
    """
    sessions: list[Session] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if len(sessions) == limit:
                break
            if line.strip():
                sessions.append(_session(line, number, seed))
    if not sessions:
        raise TraceError(f"{path}: expected at least one request")
    sessions.sort(key=lambda session: session.start_s)
    first_s = sessions[0].start_s
    return [Session(s.session_id, s.start_s - first_s, s.turns) for s in sessions]


def _session(line: str, number: int, seed: str) -> Session:
    try:
        found = json.loads(line)
        if not isinstance(found, dict):
            raise TypeError(f"got {type(found).__name__}")
        found = {"timestamp": found.get("timestamp_ms"), **found}
        start_ms, length, output = (float(found[name]) for name in _FIELDS[:3])
        pieces = _pieces(int(length), found["hash_ids"], f"{seed}/trace", number)
    except (ValueError, TypeError, KeyError) as error:
        raise TraceError(
            f"line {number}: {error!r}; expected an object with {', '.join(_FIELDS)}"
        ) from error
    return Session(f"trace-{number}", start_ms / 1e3, [Turn(pieces, max(1, int(output)))])


def _pieces(length: int, hash_ids: list[Any], name: str, number: int) -> list[Piece]:
    """The prompt; where ids are missing, text that no other has."""
    if length < 1:
        raise ValueError(f"input_length: got {length}, expected at least 1")
    pieces = []
    for position, hash_id in enumerate(hash_ids):
        if (left := length - position * TOKENS_PER_ID) > 0:
            pieces.append(Piece(f"{name}/{int(hash_id)}", min(left, TOKENS_PER_ID)))
    if (left := length - len(hash_ids) * TOKENS_PER_ID) > 0:
        pieces.append(Piece(f"{name}/line {number}", left))
    return pieces
