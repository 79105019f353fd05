"""Brings blocks from Redis to host slots, on a thread of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic

import structlog

from workers.engine.host_tier import HostTier
from workers.engine.redis_health import RedisHealth
from workers.engine.redis_part import Errand, Outcome, RunErrand
from workers.engine.sequence import Sequence
from workers.engine.tier_stats import TierStats
from workers.parallel.group import RankLostError

log = structlog.get_logger(__name__)

_PART_BYTES = 16 * 1024 * 1024
"""Read at a time."""


@dataclass(eq=False)
class Fetch:
    """The blocks that follow what an engine has of a prompt, and who waits for them."""

    hashes: list[bytes]
    deadline: float
    """On time.monotonic(); then nobody waits any more."""
    waiting: list[Sequence] = field(default_factory=list)


class RedisFetcher:
    """Fetches one after the other; what has arrived of one is in its slots at once."""

    def __init__(
        self,
        run: RunErrand,
        block_bytes: int,
        host: HostTier,
        health: RedisHealth,
        stats: TierStats,
        compute_seconds: Callable[[int], float],
    ) -> None:
        """`run` has all ranks do something; `block_bytes` are of this one's part of a block;
        `compute_seconds` says what so many blocks would take to compute."""
        self._run_errand = run
        self._block_bytes = block_bytes
        self._host = host
        self._health = health
        self._stats = stats
        self._compute_seconds = compute_seconds
        self._part = max(1, _PART_BYTES // block_bytes)
        self._queue: SimpleQueue[Fetch | None] = SimpleQueue()
        self.done: SimpleQueue[Fetch] = SimpleQueue()
        """Fetches that have ended, well or not."""
        self.news = Event()
        """Set whenever there is one more."""
        self._thread = Thread(target=self._run, name="redis fetcher", daemon=True)
        self._thread.start()

    def begin(self, fetch: Fetch) -> None:
        """Fetch as many of the first blocks as there are, unless computing them takes less."""
        self._queue.put(fetch)

    def close(self, timeout_s: float) -> None:
        """End, after the fetch under way."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (fetch := self._queue.get()) is not None:
            try:
                if monotonic() < fetch.deadline and not self._health.is_away:
                    self._fetch(fetch)
            except RankLostError as error:
                log.warning("a prefix is not fetched: ranks are lost", reason=str(error))
            finally:
                self.done.put(fetch)
                self.news.set()

    def _fetch(self, fetch: Fetch) -> None:
        began = monotonic()
        found = self._run_errand(Errand("look", fetch.hashes))
        if self._has_failed(found):
            return
        self._health.answered(monotonic() - began)
        read_s = self._health.read_seconds(found.num_blocks * self._block_bytes)
        if not found.num_blocks or read_s >= self._compute_seconds(found.num_blocks):
            return
        slots = self._host.reserve(found.num_blocks)
        num_filled = 0
        try:
            for first in range(0, len(slots), self._part):
                part = slots[first : first + self._part]
                num_read = self._read(fetch.hashes[first : first + len(part)], part)
                num_filled += num_read
                if num_read < len(part):
                    break
        finally:
            self._host.release(slots[num_filled:])

    def _read(self, hashes: list[bytes], slots: list[int]) -> int:
        """Have blocks read, and found by their hashes; returns how many of the first ones were."""
        began = monotonic()
        outcome = self._run_errand(Errand("read", hashes, slots))
        if self._has_failed(outcome):
            return 0
        for block_hash, slot in zip(hashes[: outcome.num_blocks], slots, strict=False):
            self._host.brought(slot, block_hash)
        if outcome.num_blocks:
            self._health.read(outcome.num_blocks * self._block_bytes, monotonic() - began)
        self._stats.blocks_fetched += outcome.num_blocks
        self._stats.bytes_fetched += outcome.num_bytes
        self._stats.values_corrupt += outcome.num_corrupt
        return outcome.num_blocks

    def _has_failed(self, outcome: Outcome) -> bool:
        if outcome.error:
            self._health.failed(outcome.error)
            self._stats.fetches_failed += 1
        return bool(outcome.error)
