"""The events of a stream that each bring a part of one choice."""

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json


class Chunks:
    """Server-sent events of a head, a choice and a tail, of which only the choice changes."""

    def __init__(self, head: Mapping[str, Any], tail: Mapping[str, Any]) -> None:
        self._head = head
        self._end = (
            b"]" + b"".join(b"," + to_json({k: v})[1:-1] for k, v in tail.items()) + b"}\n\n"
        )
        self._model: str | None = None
        self._begin = b""

    def event(self, model: str, choice: Mapping[str, Any]) -> bytes:
        """A part of a choice that `model` has made."""
        if model != self._model:
            self._model = model
            head = to_json({**self._head, "model": model})
            self._begin = b"data: " + head[:-1] + b',"choices":['
        return self._begin + to_json(choice) + self._end
