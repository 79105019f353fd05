"""Samples of a job that are served together."""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from router.fleet.replica_link import ReplicaLink
from router.fleet.ticket import Ticket

_MOST_PAUSE_S = 2.0


class Leg(NamedTuple):
    """A part of a job at a replica."""

    link: ReplicaLink
    ticket: Ticket
    sent_at: float
    """On time.monotonic()."""
    is_hedge: bool


@dataclass(slots=True, eq=False)
class Part:
    """The samples `indices` of a job: at a replica, at two of them, or waiting for one.

    Times are on time.monotonic().
    """

    indices: range
    waiting_since: float
    """When it last began to wait for a replica."""
    legs: list[Leg] = field(default_factory=list)
    """None while it waits; two while the first has been slow to answer."""
    lost: list[str] = field(default_factory=list)
    """Replicas that have failed it or handed it back, by name; one may be in it several times."""
    refused: set[str] = field(default_factory=set)
    """Replicas that were full."""
    num_moves: int = 0
    """Times that it was taken elsewhere after its first token."""
    num_pauses: int = 0
    not_before: float = 0.0
    """When it may be sent again."""
    is_retry: bool = False
    """Whether it is to be sent again because a replica has failed it."""
    is_hedged: bool = False
    heard_at: float = 0.0
    """When something last came of it, or it was sent."""

    @property
    def cause(self) -> str:
        """Why a replica is wanted for it."""
        if self.num_moves:
            return "moved"
        return "lost" if self.lost else "refused" if self.refused else "new"

    def pause(self, now: float, first_s: float) -> None:
        """Not be sent for a while, twice as long each time; by chance up to half as long, so that
        what failed together does not come together."""
        longest_s = min(first_s * 2.0 ** min(self.num_pauses, 16), _MOST_PAUSE_S)
        self.num_pauses += 1
        self.not_before = now + longest_s * random.uniform(0.5, 1.0)

    def split(self, indices: set[int]) -> "list[Part]":
        """One part for each of its samples that is still wanted; these have gone different ways."""
        return [
            Part(
                indices=range(index, index + 1),
                waiting_since=self.waiting_since,
                lost=list(self.lost),
                num_moves=self.num_moves,
                num_pauses=self.num_pauses,
                not_before=self.not_before,
                is_retry=self.is_retry,
                heard_at=self.heard_at,
            )
            for index in self.indices
            if index in indices
        ]
