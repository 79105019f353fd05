"""Brings blocks from Redis to host slots, on a thread of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic

import numpy as np
import structlog
from redis.exceptions import RedisError

from cluster.prefix.byte_store import ByteStore
from cluster.prefix.byte_value import CorruptValueError, unseal
from workers.engine.host_tier import HostTier
from workers.engine.redis_health import RedisHealth
from workers.engine.sequence import Sequence
from workers.engine.tier_stats import TierStats
from workers.layers.host_store import HostStore

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
        store: ByteStore,
        host: HostTier,
        rows: HostStore,
        health: RedisHealth,
        stats: TierStats,
        compute_seconds: Callable[[int], float],
    ) -> None:
        """`compute_seconds` says what so many blocks would take to compute."""
        self._store = store
        self._host = host
        self._rows = rows
        self._health = health
        self._stats = stats
        self._compute_seconds = compute_seconds
        self._part = max(1, _PART_BYTES // rows.slot_bytes)
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
            except RedisError as error:
                self._health.failed(error)
                self._stats.fetches_failed += 1
            finally:
                self.done.put(fetch)
                self.news.set()

    def _fetch(self, fetch: Fetch) -> None:
        began = monotonic()
        depth = self._store.num_leading(fetch.hashes)
        self._health.answered(monotonic() - began)
        read_s = self._health.read_seconds(depth * self._rows.slot_bytes)
        if not depth or read_s >= self._compute_seconds(depth):
            return
        slots = self._host.reserve(depth)
        hashes = fetch.hashes[: len(slots)]
        num_filled = 0
        try:
            for first in range(0, len(slots), self._part):
                part = slice(first, first + self._part)
                num_filled += self._read(hashes[part], slots[part])
                if num_filled < min(part.stop, len(slots)):
                    break
        finally:
            self._host.release(slots[num_filled:])

    def _read(self, hashes: list[bytes], slots: list[int]) -> int:
        """Fill slots until a block is not there, or not what it should be; returns how many."""
        began = monotonic()
        num_filled = 0
        for block_hash, slot, value in zip(hashes, slots, self._store.get(hashes), strict=True):
            if value is None:
                break
            try:
                payload = unseal(self._store.key(block_hash), value, self._rows.slot_bytes)
            except CorruptValueError as error:
                self._stats.values_corrupt += 1
                log.warning("a block in Redis is not what was written", reason=str(error))
                self._store.remove(block_hash)
                break
            # By numpy, which lets other threads compute meanwhile.
            np.copyto(self._rows.row(slot), np.frombuffer(payload, dtype=np.uint8))
            self._host.brought(slot, block_hash)
            num_filled += 1
        num_bytes = num_filled * self._rows.slot_bytes
        if num_filled:
            self._health.read(num_bytes, monotonic() - began)
        self._stats.blocks_fetched += num_filled
        self._stats.bytes_fetched += num_bytes
        return num_filled
