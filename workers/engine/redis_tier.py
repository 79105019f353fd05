"""The tier that all replicas share: prefixes that others have computed come from Redis.

A request whose prefix may continue there waits aside, while the engine goes on with others, until
the blocks are in host slots, or Redis has none, has failed, or is slower than computing them.
"""

from collections.abc import Callable
from time import monotonic

from workers.engine.gang_protocol import Gang
from workers.engine.host_tier import HostTier
from workers.engine.kv_blocks import KVBlocks
from workers.engine.redis_fetcher import Fetch, RedisFetcher
from workers.engine.redis_health import TIMEOUT_S, RedisHealth
from workers.engine.redis_part import RedisPart
from workers.engine.redis_writer import RedisWriter
from workers.engine.sequence import Sequence
from workers.engine.tier_stats import TierStats

_MOST_FETCHES = 16
"""Under way at a time; who comes when there are more does not wait."""
_MOST_BLOCKS = 16_384
"""Of one fetch, whose hashes go to other ranks in one message."""
_LEAST_WAIT_S, _MOST_WAIT_S, _FIRST_WAIT_S = 0.1, 5.0, 2.0
"""Bounds of what a request waits, which is what computing would take, and where that is unknown."""
_CLOSE_S = 2 * TIMEOUT_S


class RedisTier:
    """The engine's side; its thread makes all calls."""

    def __init__(
        self,
        part: RedisPart,
        gang: Gang,
        blocks: KVBlocks,
        host: HostTier,
        stats: TierStats,
        prefill_tokens_per_s: Callable[[], float],
    ) -> None:
        """`part` is the leader's; `prefill_tokens_per_s` is the engine's, 0 while unknown."""
        self._part = part
        self._blocks = blocks
        self._stats = stats
        self._prefill_tokens_per_s = prefill_tokens_per_s
        self._most_blocks = min(_MOST_BLOCKS, host.num_slots // 2)
        self._health = RedisHealth()
        shared = (
            lambda errand: gang.run(errand, part),
            part.block_bytes,
            host,
            self._health,
            stats,
        )
        self._fetcher = RedisFetcher(*shared, self._compute_seconds)
        self._writer = RedisWriter(*shared)
        host.serve(self._writer)
        self._under_way: dict[bytes, Fetch] = {}
        """By the hash of the first block."""

    def begin(self, sequence: Sequence) -> bool:
        """Whether the sequence, which is new, is to wait until `arrived` names it."""
        missing = self._blocks.missing_hashes(sequence)[: self._most_blocks]
        if not missing or self._health.is_away:
            return False
        fetch = self._under_way.get(missing[0])
        if fetch is None:
            seconds = self._compute_seconds(len(missing))
            if len(self._under_way) >= _MOST_FETCHES or self._health.read_seconds(0) >= seconds:
                return False
            fetch = Fetch(missing, monotonic() + _wait_seconds(seconds))
            self._under_way[missing[0]] = fetch
            self._stats.fetches += 1
            self._fetcher.begin(fetch)
        fetch.waiting.append(sequence)
        return True

    def arrived(self) -> list[Sequence]:
        """The sequences that need not wait any more."""
        self._fetcher.news.clear()
        ended = []
        while not self._fetcher.done.empty():
            fetch = self._fetcher.done.get()
            if self._under_way.get(fetch.hashes[0]) is fetch:
                ended.append(fetch)
        now = monotonic()
        late = [f for f in self._under_way.values() if f.deadline <= now and f not in ended]
        self._stats.fetches_timed_out += len(late)
        for fetch in ended + late:
            del self._under_way[fetch.hashes[0]]
        return [sequence for fetch in ended + late for sequence in fetch.waiting]

    def leave(self, sequence: Sequence) -> None:
        """A sequence that waits has ended."""
        for fetch in self._under_way.values():
            if sequence in fetch.waiting:
                fetch.waiting.remove(sequence)

    def wait(self, timeout_s: float) -> None:
        """Return when a fetch has ended, but in time."""
        self._fetcher.news.wait(timeout_s)

    def close(self) -> None:
        """Write what is queued, briefly, and end."""
        self._writer.close(_CLOSE_S)
        self._fetcher.close(_CLOSE_S)
        self._part.close()

    def _compute_seconds(self, num_blocks: int) -> float:
        """What so many blocks take to compute; endless while that is unknown."""
        rate = self._prefill_tokens_per_s()
        return num_blocks * self._blocks.block_size / rate if rate else float("inf")


def _wait_seconds(compute_s: float) -> float:
    if compute_s == float("inf"):
        return _FIRST_WAIT_S
    return min(_MOST_WAIT_S, max(_LEAST_WAIT_S, compute_s))
