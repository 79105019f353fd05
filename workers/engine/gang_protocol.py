"""What an engine needs of the ranks that its model is divided among."""

import faulthandler
from typing import Protocol

from workers.engine.cache_size import CacheSize
from workers.engine.redis_part import Errand, Outcome, RedisPart
from workers.engine.step_plan import StepPlan
from workers.parallel.group import Ranks, solo_ranks

_STDERR = 2


class Gang(Protocol):
    """All ranks of a replica, as their leader sees them."""

    @property
    def ranks(self) -> Ranks:
        """The leader's own place, and what it exchanges tensors by."""

    def agree(self, own: CacheSize) -> CacheSize:
        """What every rank has room for; the leader itself has room for `own`.

        From then on the other ranks follow plans. Raises RankLostError.
        """

    def send(self, plan: StepPlan) -> None:
        """Hand a plan to all other ranks, which run plans in the order sent. Raises RankLostError.

        The plan's memory may change as soon as this returns.
        """

    def run(self, errand: Errand, own: RedisPart) -> Outcome:
        """Have all ranks do something with Redis, this one with its `own` part, and wait for them.

        By then all have moved blocks as the plans say whose steps the leader has computed. On any
        thread. Raises RankLostError.
        """

    def check(self) -> None:
        """Raise RankLostError if a rank is lost. On any thread."""

    def fail(self, reason: str) -> None:
        """Give the gang up: the leader has not done what it sent. `check` raises from now on."""

    def dump_stacks(self) -> None:
        """Have all ranks write to their logs what their threads are doing. On any thread."""

    def close(self) -> None:
        """Let the other ranks end. Nothing else may be called afterwards."""


class SoloGang:
    """A leader without others."""

    def __init__(self) -> None:
        self.ranks = solo_ranks()

    def agree(self, own: CacheSize) -> CacheSize:
        """See Gang."""
        return own

    def send(self, plan: StepPlan) -> None:
        """See Gang."""

    def run(self, errand: Errand, own: RedisPart) -> Outcome:
        """See Gang."""
        return own.run(errand)

    def check(self) -> None:
        """See Gang."""

    def fail(self, reason: str) -> None:
        """See Gang. There is nobody to be out of step with."""

    def dump_stacks(self) -> None:
        """See Gang."""
        faulthandler.dump_traceback(file=_STDERR)

    def close(self) -> None:
        """See Gang."""
