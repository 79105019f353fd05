"""The requests that wait for one model."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from cluster.errors import Reason, RequestError
from router.queue.discipline import Discipline
from router.queue.fair import OUTPUT_WEIGHT
from router.queue.places import Places
from router.queue.waiter import Waiter
from router.service_rate import ServiceRate

_ENDS_TO_LEARN = 16
"""Requests that must have ended, while others waited, before a wait is predicted."""


class Replicas(Protocol):
    """The replicas of a model, as router.fleet.replica_set.ReplicaSet has them."""

    @property
    def num_ready(self) -> int:
        """Replicas that take requests now."""

    @property
    def room(self) -> float:
        """Sequences that may be sent before all ready replicas have enough to do."""

    @property
    def room_to_run(self) -> float:
        """Of these, those that may run at once: what makes way for others does not wait there."""

    async def changed(self) -> None:
        """Wait until this may be different."""


class RequestQueue:
    """Lets requests through, in its discipline's order, while some replica has room for them.

    One that is let through has a Turn until it ends. `on_wait` is told how many seconds each that
    was let through has waited.
    """

    def __init__(
        self,
        discipline: Discipline,
        replicas: Replicas,
        places: Places,
        *,
        max_queued: int,
        max_waiting_s: float,
        on_wait: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._discipline = discipline
        self._replicas = replicas
        self._places = places
        self._max_queued = max_queued
        self._max_waiting_s = max_waiting_s
        self._on_wait = on_wait
        self._clock = clock
        self._numbers = itertools.count(1)
        self._rate = ServiceRate(clock)
        self._pace = ServiceRate(clock)
        """The rate while others wait: with replicas that have room it says nothing of a wait."""
        self._num_ended = 0
        """Of those that ended while others waited."""
        self._num_running = 0
        self._on_their_way = 0
        """Sequences let through that no replica's load counts yet."""
        self._is_open = True
        self._following: asyncio.Task[None] | None = None
        places.listen(self._let_through)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._discipline)

    @asynccontextmanager
    async def turn(self, waiter: Waiter) -> AsyncIterator["Turn"]:
        """Wait until it is the request's turn, and be under way.

        Raises RequestError: QUEUE_FULL if there is no room to wait, or the deadline would pass
        meanwhile; DEADLINE_EXCEEDED if it does; NO_REPLICA; SHUTTING_DOWN.
        """
        await self._wait(waiter)
        turn = Turn(self, waiter)
        try:
            yield turn
        finally:
            turn.end()

    def close(self) -> None:
        """Let nobody through any more, and send away those that wait."""
        self._is_open = False
        while len(self._discipline):
            _refuse(self._discipline.pop(), _shutting_down())
        if self._following is not None:
            self._following.cancel()

    async def _wait(self, waiter: Waiter) -> None:
        if not self._is_open:
            raise _shutting_down()
        waiter.number = next(self._numbers)
        waiter.came_at = self._clock()
        waiter.turn = asyncio.get_running_loop().create_future()
        if not len(self._discipline):
            self._pace.begin()
        self._discipline.add(waiter)
        try:
            self._let_through()
            if not waiter.turn.done():
                self._check_in_time(waiter)
                self._make_room()
            await self._until_done(waiter, waiter.turn)
            waiter.turn.result()
        except BaseException:
            self._discipline.discard(waiter)
            if _has_turn(waiter):
                Turn(self, waiter).end()
            raise
        self._on_wait(self._clock() - waiter.came_at)

    async def _until_done(self, waiter: Waiter, turn: asyncio.Future[None]) -> None:
        patience_end = waiter.came_at + self._max_waiting_s
        while not turn.done():
            now = self._clock()
            if now >= waiter.deadline:
                waited_s = now - waiter.came_at
                raise RequestError(
                    Reason.DEADLINE_EXCEEDED,
                    f"the deadline passed after {waited_s:.3f}s in the queue",
                )
            if now >= patience_end:
                if not self._replicas.num_ready:
                    raise RequestError(
                        Reason.NO_REPLICA,
                        f"no replica became ready in {self._max_waiting_s:g}s",
                        retry_after_s=1.0,
                    )
                patience_end = now + self._max_waiting_s
            await asyncio.wait((turn,), timeout=min(waiter.deadline, patience_end) - now)

    def _let_through(self) -> None:
        """Whoever is next, as long as there is room; to be called when there may be more."""
        while len(self._discipline):
            yields = self._discipline.next_yields()
            if not self._has_room(yields):
                break
            waiter = self._discipline.pop()
            assert waiter.turn is not None, "it waits"
            if not waiter.turn.done():
                waiter.yields = yields
                self._begin(waiter)
                waiter.turn.set_result(None)
        if len(self._discipline) and (self._following is None or self._following.done()):
            self._following = asyncio.create_task(self._follow(), name="queue")

    def _has_room(self, yields: bool) -> bool:
        if not (self._places.is_free and self._replicas.num_ready):
            return False
        room = self._replicas.room_to_run if yields else self._replicas.room
        return room > self._on_their_way

    async def _follow(self) -> None:
        """Look again whenever something has changed at the replicas, while anybody waits."""
        while len(self._discipline):
            await self._replicas.changed()
            self._let_through()

    def _check_in_time(self, waiter: Waiter) -> None:
        """Refuse what is expected to wait until its deadline has passed."""
        if self._pace.interval_s is None or self._num_ended < _ENDS_TO_LEARN:
            return
        wait_s = self._pace.interval_s * (self._discipline.num_before(waiter) + 1)
        left_s = waiter.deadline - waiter.came_at
        if wait_s > left_s:
            raise RequestError(
                Reason.QUEUE_FULL,
                f"it would wait for about {wait_s:.3g}s, and its deadline is in {left_s:.3g}s",
                retry_after_s=max(wait_s - left_s, self._pace.time_to_next_end_s()),
            )

    def _make_room(self) -> None:
        """Send away whoever is last, if more wait than may."""
        if len(self._discipline) <= self._max_queued:
            return
        last = self._discipline.last()
        self._discipline.discard(last)
        error = RequestError(
            Reason.QUEUE_FULL,
            f"{self._max_queued} requests are waiting, which is the limit",
            retry_after_s=self._rate.time_to_next_end_s(),
        )
        _refuse(last, error)

    def _begin(self, waiter: Waiter) -> None:
        self._places.take()
        self._on_their_way += waiter.sequences
        if self._num_running == 0:
            self._rate.begin()
        self._num_running += 1
        self._discipline.begin(waiter)
        self._discipline.serve(waiter, waiter.tokens)

    def arrive(self, waiter: Waiter) -> None:
        """A replica's load counts it now; for its Turn."""
        self._on_their_way -= waiter.sequences

    def serve(self, waiter: Waiter, output_tokens: int) -> None:
        """Tokens were made for it; for its Turn."""
        self._discipline.serve(waiter, OUTPUT_WEIGHT * output_tokens)

    def end(self, waiter: Waiter) -> None:
        """It has ended; for its Turn."""
        self._num_running -= 1
        self._discipline.end(waiter)
        self._rate.end()
        if len(self._discipline):
            self._num_ended += 1
            self._pace.end()
        self._places.give_back()


class Turn:
    """A request that was let through."""

    def __init__(self, queue: RequestQueue, waiter: Waiter) -> None:
        self._queue = queue
        self._waiter = waiter
        self._output_tokens = 0
        self.is_sent = False
        """Whether a replica has been given it."""

    @property
    def yields(self) -> bool:
        """Whether it makes way for others at a replica."""
        return self._waiter.yields

    def sent(self) -> None:
        """It was submitted to a replica, whose load counts it from now on."""
        if not self.is_sent:
            self.is_sent = True
            self._queue.arrive(self._waiter)

    def serve(self, output_tokens: int) -> None:
        """It has got so many tokens by now."""
        if added := output_tokens - self._output_tokens:
            self._output_tokens = output_tokens
            self._queue.serve(self._waiter, added)

    def end(self) -> None:
        """It has ended; once."""
        if not self.is_sent:
            self._queue.arrive(self._waiter)
        self._queue.end(self._waiter)


def _has_turn(waiter: Waiter) -> bool:
    turn = waiter.turn
    return turn is not None and turn.done() and not turn.cancelled() and turn.exception() is None


def _refuse(waiter: Waiter, error: RequestError) -> None:
    if waiter.turn is not None and not waiter.turn.done():
        waiter.turn.set_exception(error)


def _shutting_down() -> RequestError:
    return RequestError(Reason.SHUTTING_DOWN, "this router is shutting down", retry_after_s=1.0)
