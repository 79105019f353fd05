"""The end of a sample by a string in its text."""

from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    """What a piece of text adds to a sample."""

    text: str
    """Text that no stop string can take back any more."""
    stop_string: str | None
    """The stop string found; `text` ends before it and the sample is over."""


class StopStrings:
    """Looks for stop strings in a text that arrives in pieces.

    The string that is complete first wins; of several that end at the same character, the longest.
    So the outcome is the same for any split of the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._stops

    def push(self, text: str) -> StopMatch:
        """Takes the next piece of text; after a match, nothing more may be pushed."""
        if not self._stops:
            return StopMatch(text, None)
        text, stops = self._held + text, self._stops
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
        if found:
            end, _, stop = min(found)
            self._held = ""
            return StopMatch(text[: end - len(stop)], stop)
        kept = max(_overlap(text, stop) for stop in stops)
        self._held = text[len(text) - kept :]
        return StopMatch(text[: len(text) - kept], None)

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop`, longer than it, begins."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
