"""Who is next, and who is last."""

from typing import Protocol

from router.queue.waiter import Waiter


class Discipline(Protocol):
    """Orders the requests that wait for one model; it holds those that were added, no others."""

    def __len__(self) -> int:
        """How many wait."""

    def add(self, waiter: Waiter) -> None:
        """One more waits."""

    def discard(self, waiter: Waiter) -> None:
        """It waits no more; harmless if it did not wait."""

    def pop(self) -> Waiter:
        """The next one, which then waits no more. Some must wait."""

    def last(self) -> Waiter:
        """The one that is turned away when there are too many. Some must wait."""

    def num_before(self, waiter: Waiter) -> int:
        """How many of those that wait now will come before it, if nobody else comes."""

    def next_yields(self) -> bool:
        """Whether the next one is to make way for others at a replica. Some must wait."""

    def begin(self, waiter: Waiter) -> None:
        """It is under way."""

    def end(self, waiter: Waiter) -> None:
        """It is not under way any more."""

    def serve(self, waiter: Waiter, tokens: float) -> None:
        """Tokens were computed for it; it is under way."""
