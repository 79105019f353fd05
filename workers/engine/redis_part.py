"""A rank's part of blocks in Redis: it reads and writes what its own host slots hold of them."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Literal, NamedTuple

import numpy as np
import structlog
from redis.exceptions import OutOfMemoryError, RedisError

from cluster.prefix.byte_store import ByteStore
from cluster.prefix.byte_value import CorruptValueError, unseal
from cluster.settings import EngineSettings, RedisCacheSettings
from workers.engine.cache_layout import cache_layout
from workers.engine.redis_health import TIMEOUT_S
from workers.layers.host_store import HostStore
from workers.models.causal_lm import CausalLM
from workers.parallel.group import Ranks

log = structlog.get_logger(__name__)

_ROOM_S = 1.0
"""Between looks at how full the server is."""
_BUDGET_BYTES = 4 * 1024**3
"""Of a server that has no bound, and for which none is set."""


class Errand(NamedTuple):
    """What all ranks of a replica do with their parts of the same blocks."""

    what: Literal["look", "read", "write"]
    """How many of the first blocks are there? Read them into slots. Write them from slots."""
    hashes: Sequence[bytes]
    slots: Sequence[int] = ()
    """One for each hash; none to look."""


class Outcome(NamedTuple):
    """What came of an errand on a rank, or on all."""

    num_blocks: int = 0
    """Blocks found; read, which are the first ones; or written, for others were there."""
    num_bytes: int = 0
    num_corrupt: int = 0
    """Values that were not what was written."""
    num_refused: int = 0
    """Blocks that Redis has no room for."""
    error: str = ""
    """Why Redis is of no use now."""

    @classmethod
    def of_all(cls, outcomes: "Sequence[Outcome]") -> "Outcome":
        """Of a replica, whose blocks are where all ranks have them."""
        return cls(
            min(outcome.num_blocks for outcome in outcomes),
            sum(outcome.num_bytes for outcome in outcomes),
            sum(outcome.num_corrupt for outcome in outcomes),
            max(outcome.num_refused for outcome in outcomes),
            next((outcome.error for outcome in outcomes if outcome.error), ""),
        )


RunErrand = Callable[[Errand], Outcome]
"""On all ranks of a replica. Raises RankLostError."""


class RedisPart:
    """Runs errands, on any thread: one of them reads, another writes."""

    def __init__(self, settings: RedisCacheSettings, layout: bytes, rows: HostStore) -> None:
        """Raises ValueError for a URL of another kind."""
        assert settings.url is not None, "without one there is nothing to do"
        self.store = ByteStore(settings.url, layout, timeout_s=TIMEOUT_S)
        self._rows = rows
        self._budget_bytes = settings.max_bytes or _BUDGET_BYTES
        self._room_bytes = 0
        self._room_seen_at = float("-inf")

    @property
    def block_bytes(self) -> int:
        """Of this rank's part of a block."""
        return self._rows.slot_bytes

    def run(self, errand: Errand) -> Outcome:
        """Do it, as far as Redis lets us."""
        try:
            if errand.what == "look":
                return Outcome(self.store.num_leading(errand.hashes))
            if errand.what == "read":
                return self._read(errand)
            return self._write(errand)
        except OutOfMemoryError:
            return Outcome(num_refused=len(errand.hashes))
        except RedisError as error:
            return Outcome(error=f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End its connections."""
        self.store.close()

    def _read(self, errand: Errand) -> Outcome:
        """Fill slots until a block is not there, or not what it should be."""
        own = [h for h, slot in self._blocks(errand) if self._rows.holds(slot)]
        values = iter(self.store.get(own) if own else [])
        num_own = 0
        for index, (block_hash, slot) in enumerate(self._blocks(errand)):
            if not self._rows.holds(slot):
                continue
            value = next(values)
            is_right = value is not None and self._fill(slot, block_hash, value)
            if not is_right:
                return Outcome(index, num_own * self.block_bytes, int(value is not None))
            num_own += 1
        return Outcome(len(errand.hashes), num_own * self.block_bytes)

    def _fill(self, slot: int, block_hash: bytes, value: bytes) -> bool:
        try:
            payload = unseal(self.store.key(block_hash), value, self.block_bytes)
        except CorruptValueError as error:
            log.warning("a block in Redis is not what was written", reason=str(error))
            self.store.remove(block_hash)
            return False
        # By numpy, which lets other threads compute meanwhile.
        np.copyto(self._rows.row(slot), np.frombuffer(payload, dtype=np.uint8))
        return True

    def _write(self, errand: Errand) -> Outcome:
        own = {h: slot for h, slot in self._blocks(errand) if self._rows.holds(slot)}
        there = self.store.touch(list(own))
        missing = [h for h, is_there in zip(own, there, strict=True) if not is_there]
        num_bytes = len(missing) * self.block_bytes
        if not self._fits(num_bytes):
            return Outcome(num_refused=len(missing))
        if missing:
            self.store.put({h: self._rows.row(own[h]).data for h in missing})
            self._room_bytes -= num_bytes
        num_elsewhere = len(errand.hashes) - len(own)
        return Outcome(len(missing) + num_elsewhere, num_bytes)

    def _fits(self, num_bytes: int) -> bool:
        if monotonic() - self._room_seen_at > _ROOM_S:
            self._room_bytes = self.store.room_bytes(self._budget_bytes)
            self._room_seen_at = monotonic()
        return num_bytes <= self._room_bytes

    def _blocks(self, errand: Errand) -> list[tuple[bytes, int]]:
        return list(zip(errand.hashes, errand.slots, strict=True))


def redis_part(
    model: CausalLM, settings: EngineSettings, ranks: Ranks, rows: HostStore | None
) -> RedisPart | None:
    """A rank's, if the settings have one."""
    if settings.redis_cache.url is None or rows is None:
        return None
    return RedisPart(settings.redis_cache, cache_layout(model, settings, ranks), rows)
