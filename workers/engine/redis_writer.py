"""Writes blocks from host slots to Redis, on a thread of its own."""

from queue import Empty, SimpleQueue
from threading import Thread

import structlog

from workers.engine.host_tier import HostTier
from workers.engine.redis_health import RedisHealth
from workers.engine.redis_part import Errand, RunErrand
from workers.engine.tier_stats import TierStats
from workers.parallel.group import RankLostError

log = structlog.get_logger(__name__)

_QUEUE_BYTES = 256 * 1024 * 1024
_PART_BYTES = 8 * 1024 * 1024
"""Written at a time."""


class RedisWriter:
    """An Outlet. What it has no room for is dropped and counted: nobody waits for it."""

    def __init__(
        self,
        run: RunErrand,
        block_bytes: int,
        host: HostTier,
        health: RedisHealth,
        stats: TierStats,
    ) -> None:
        """`run` has all ranks do something; `block_bytes` are of this one's part of a block."""
        self._run_errand = run
        self._host = host
        self._health = health
        self._stats = stats
        self._most = max(1, min(_QUEUE_BYTES // block_bytes, host.num_slots // 4))
        self._part = max(1, _PART_BYTES // block_bytes)
        # Each is counted by one thread only.
        self._num_offered = self._num_ended = 0
        self._queue: SimpleQueue[tuple[int, bytes] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="redis writer", daemon=True)
        self._thread.start()

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
            except RankLostError as error:
                log.warning("blocks are not written: ranks are lost", reason=str(error))
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
        errand = Errand("write", list(slots), list(slots.values()))
        outcome = self._run_errand(errand)
        if outcome.error:
            self._health.failed(outcome.error)
            self._stats.writes_failed += len(slots)
            return
        self._health.worked()
        self._stats.writes_failed += outcome.num_refused
        self._stats.blocks_written += outcome.num_blocks
        self._stats.bytes_written += outcome.num_bytes
