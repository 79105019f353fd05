"""How a replica tells routers which blocks it has cached."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice

from redis.exceptions import RedisError

from cluster.cancelling import raise_if_cancelled
from cluster.prefix.block_log import CHUNK_BLOCKS, BlockLog
from cluster.prefix.events import CacheChange, CacheEvent, Update, joined

log = logging.getLogger(__name__)

_RENEWALS_PER_LEASE = 3
_RETRY_S = 0.5
_GATHER_S = 0.02
"""Between updates: what comes meanwhile is one update."""


class PrefixPublisher:
    """Keeps a replica's blocks in Redis as its engine has them; `run` is to be running in a task.

    It has its own copy of what the engine caches. When Redis does not answer, or does not know what
    was written last, nobody waits: the copy goes on, and is written as a whole once Redis is back.
    """

    def __init__(self, block_log: BlockLog, lease_s: float) -> None:
        """Looks after Redis a few times per `lease_s`."""
        self._block_log = block_log
        self._period_s = lease_s / _RENEWALS_PER_LEASE
        self._resident: set[bytes] = set()
        self._lowered: set[bytes] = set()
        self._number = 0
        # Whether Redis has the sets as of update `_number`; what has changed since then.
        self._is_written = False
        self._changes: dict[bytes, CacheChange] = {}
        self._is_cleared = False
        self._news = asyncio.Event()
        self._is_away = False

    def note(self, events: Iterable[CacheEvent]) -> None:
        """Take what the engine says, in order."""
        for change, hashes in events:
            self._note(change, hashes)
            self._news.set()

    async def run(self) -> None:
        """Write what is noted until cancelled; then remove all that was written."""
        try:
            while True:
                raise_if_cancelled()
                await asyncio.sleep(_GATHER_S if await self._write() else _RETRY_S)
                if self._is_written:
                    await self._wait_for_news()
        finally:
            with suppress(RedisError, OSError):  # or else it ends by itself
                await self._block_log.delete()

    def _note(self, change: CacheChange, hashes: list[bytes]) -> None:
        if change is CacheChange.CLEARED:
            self._resident.clear()
            self._lowered.clear()
            self._changes, self._is_cleared = {}, True
            return
        self._resident.difference_update(hashes)
        self._lowered.difference_update(hashes)
        if change is CacheChange.STORED:
            self._resident.update(hashes)
        elif change is CacheChange.LOWERED:
            self._lowered.update(hashes)
        if self._is_written:
            # Otherwise the whole sets are to be written, and changes would only gather.
            self._changes.update(dict.fromkeys(hashes, change))

    async def _write(self) -> bool:
        """Bring Redis up to date, or see whether it is; returns whether it answers as it should."""
        try:
            if not self._is_written:
                await self._rewrite()
            elif self._changes or self._is_cleared:
                self._is_written = await self._block_log.append(self._next_update())
            else:
                counts = len(self._resident), len(self._lowered)
                self._is_written = await self._block_log.renew(self._number, *counts)
        except (RedisError, OSError) as error:
            # What was to be written may have been, or may be yet.
            self._is_written = False
            self._report(str(error))
        else:
            self._report("" if self._is_written else "redis does not know what it was told last")
        return self._is_written

    async def _rewrite(self) -> None:
        """Write the whole sets; what is noted meanwhile comes after them."""
        self._number += 1
        number, resident, lowered = self._number, list(self._resident), list(self._lowered)
        self._changes, self._is_cleared = {}, False
        self._is_written = True
        known = await self._block_log.rewrite(number, resident, lowered)
        self._is_written = known == number
        self._number = max(number, known)
        log.info("cached blocks are written anew: %d", len(resident) + len(lowered))

    def _next_update(self) -> Update:
        """The first of the changes."""
        changes = self._changes
        if len(changes) > CHUNK_BLOCKS:
            changes = dict(islice(changes.items(), CHUNK_BLOCKS))
            for block_hash in changes:
                del self._changes[block_hash]
        else:
            self._changes = {}
        self._number += 1
        is_cleared, self._is_cleared = self._is_cleared, False

        def changed(change: CacheChange) -> bytes:
            return joined(block for block, last in changes.items() if last is change)

        return Update(
            self._number,
            stored=changed(CacheChange.STORED),
            lowered=changed(CacheChange.LOWERED),
            removed=changed(CacheChange.REMOVED),
            cleared=is_cleared,
        )

    async def _wait_for_news(self) -> None:
        """Return when something is noted, or when it is time to look after Redis."""
        if not (self._changes or self._is_cleared):
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):
                    await self._news.wait()

    def _report(self, problem: str) -> None:
        """Log that Redis cannot be told: once, not each time it is tried again."""
        if problem and not self._is_away:
            log.warning("routers cannot be told of cached blocks: %s", problem)
        self._is_away = bool(problem)
