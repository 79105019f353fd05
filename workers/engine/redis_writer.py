"""Writes blocks from host slots to Redis, on a thread of its own."""

from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic

import structlog
from redis.exceptions import RedisError

from cluster.prefix.byte_store import ByteStore
from workers.engine.host_tier import HostTier
from workers.engine.redis_health import RedisHealth
from workers.engine.tier_stats import TierStats
from workers.layers.host_store import HostStore

log = structlog.get_logger(__name__)

_QUEUE_BYTES = 256 * 1024 * 1024
_PART_BYTES = 8 * 1024 * 1024
"""Written at a time."""
_ROOM_S = 1.0
"""Between looks at how full the server is."""


class RedisWriter:
    """An Outlet. What it has no room for is dropped and counted: nobody waits for it."""

    def __init__(
        self,
        store: ByteStore,
        host: HostTier,
        rows: HostStore,
        health: RedisHealth,
        stats: TierStats,
        budget_bytes: int,
    ) -> None:
        self._store = store
        self._host = host
        self._rows = rows
        self._health = health
        self._stats = stats
        self._budget_bytes = budget_bytes
        self._most = max(1, min(_QUEUE_BYTES // rows.slot_bytes, host.num_slots // 4))
        self._part = max(1, _PART_BYTES // rows.slot_bytes)
        # Each is counted by one thread only.
        self._num_offered = self._num_ended = 0
        self._queue: SimpleQueue[tuple[int, bytes] | None] = SimpleQueue()
        self._room_bytes = 0
        self._room_seen_at = 0.0
        self._thread = Thread(target=self._run, name="redis writer", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether all that was offered has been written or dropped."""
        return self._num_offered == self._num_ended

    def has_room(self, num_ahead: int, *, is_reused: bool) -> bool:
        """See Outlet."""
        most = self._most if is_reused else self._most // 2
        num_queued = self._num_offered - self._num_ended
        has_room = num_queued + num_ahead < most and not self._health.is_away
        if not has_room:
            self._stats.writes_dropped += 1
        return has_room

    def offer(self, slot: int, block_hash: bytes) -> None:
        """See Outlet."""
        self._num_offered += 1
        self._queue.put((slot, block_hash))

    def close(self, timeout_s: float) -> None:
        """Write what is queued as long as there is time, then end."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            part = [first]
            while len(part) < self._part and (more := self._next()) is not None:
                part.append(more)
            try:
                self._write({block_hash: slot for slot, block_hash in part})
            except RedisError as error:
                self._health.failed(error)
                self._stats.writes_failed += len(part)
            finally:
                self._host.release([slot for slot, _ in part])
                self._num_ended += len(part)

    def _next(self) -> tuple[int, bytes] | None:
        try:
            item = self._queue.get_nowait()
        except Empty:
            return None
        if item is None:
            self._queue.put(None)
        return item

    def _write(self, slots: dict[bytes, int]) -> None:
        if self._health.is_away:
            self._stats.writes_failed += len(slots)
            return
        began = monotonic()
        there = self._store.touch(list(slots))
        self._health.answered(monotonic() - began)
        missing = [h for h, is_there in zip(slots, there, strict=True) if not is_there]
        num_bytes = len(missing) * self._rows.slot_bytes
        if not missing:
            return
        if not self._fits(num_bytes):
            self._stats.writes_failed += len(missing)
            return
        self._store.put({h: self._rows.row(slots[h]).data for h in missing})
        self._room_bytes -= num_bytes
        self._stats.blocks_written += len(missing)
        self._stats.bytes_written += num_bytes

    def _fits(self, num_bytes: int) -> bool:
        if monotonic() - self._room_seen_at > _ROOM_S:
            self._room_bytes = self._store.room_bytes(self._budget_bytes)
            self._room_seen_at = monotonic()
        return num_bytes <= self._room_bytes
