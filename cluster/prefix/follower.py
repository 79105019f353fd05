"""How a router learns which blocks its replicas have cached."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.cancelling import raise_if_cancelled
from cluster.prefix.block_log import CHUNK_BLOCKS
from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.events import PrefixKeys, Update, UpdateError, joined

log = logging.getLogger(__name__)

_BLOCK_MS = 250
"""How long a replica that is new may have to wait."""
_CHECK_S = 1.0
"""Between looks whether a last update was lost, which no later one gives away."""
_UPDATES_AT_ONCE = 16
"""Read of each replica's stream."""
_RETRY_S = 0.5

Entries = list[tuple[bytes, dict[bytes, bytes]]]


class _Followed:
    """A replica, and how far its updates have been read."""

    def __init__(self, keys: PrefixKeys, member: str, directory: PrefixDirectory) -> None:
        self.keys = keys
        self.member = member
        self.directory = directory
        self.number = 0
        # Whether what is known is its sets as of update `number`; whether to read its sets.
        self.is_synced = False
        self.is_wanted = True


class PrefixFollower:
    """Keeps directories as replicas say; `run` is to be running in a task.

    It begins with what a replica has, reads all updates from then on, and begins again whenever one
    is missing. While Redis is away, everything stays as it was last told, but is not trusted.
    """

    def __init__(
        self,
        redis: Redis,
        namespace: str,
        *,
        on_gap: Callable[[], None],
        on_resync: Callable[[], None],
    ) -> None:
        """`on_gap` is called when an update is missing, `on_resync` when all blocks were read."""
        self._redis = redis
        self._namespace = namespace
        self._on_gap = on_gap
        self._on_resync = on_resync
        self._followed: dict[str, _Followed] = {}
        self._heard_at = time.monotonic()
        self._check_at = self._heard_at
        self._is_away = False

    @property
    def age_s(self) -> float:
        """How old the knowledge of replicas' caches is."""
        return time.monotonic() - self._heard_at

    def follow(self, replicas: Mapping[str, PrefixDirectory]) -> None:
        """Follow these replicas, by member name, into these directories, and no others."""
        for member in self._followed.keys() - replicas.keys():
            self._followed.pop(member).directory.forget(member)
        for member in replicas.keys() - self._followed.keys():
            keys = PrefixKeys.of(self._namespace, member)
            self._followed[member] = _Followed(keys, member, replicas[member])

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            raise_if_cancelled()
            try:
                await self._read_sets()
                await self._read_updates()
            except (RedisError, OSError) as error:
                self._doubt_all(str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                self._is_away = False
                self._heard_at = time.monotonic()

    async def _read_sets(self) -> None:
        """Read what replicas have of which too little is known."""
        for followed in list(self._followed.values()):
            if followed.is_wanted:
                await self._read_set(followed)

    async def _read_set(self, followed: _Followed) -> None:
        """Read a replica's sets as they were at some update or later: updates that they have seen
        already change nothing when they are read again."""
        member, directory, keys = followed.member, followed.directory, followed.keys
        number = int(await self._redis.get(keys.number) or 0)
        resident = await self._blocks(keys.resident) if number else []
        lowered = await self._blocks(keys.lowered) if number else []
        if not self._is_followed(followed):
            return
        followed.number, followed.is_wanted = number, False
        if not number:
            # It has said nothing yet, or Redis has forgotten it: the replica will tell it all.
            return
        directory.clear(member)
        for take, chunks in (directory.store, resident), (directory.lower, lowered):
            for chunk in chunks:
                take(member, chunk)
                await asyncio.sleep(0)
                if not self._is_followed(followed):
                    return
        followed.is_synced = True
        directory.trust(member)
        self._on_resync()

    async def _blocks(self, resident: str) -> list[bytes]:
        """The members of a set, joined in parts."""
        chunks, cursor = [], 0
        while True:
            cursor, blocks = await self._redis.sscan(resident, cursor, count=CHUNK_BLOCKS)
            chunks.append(joined(cast(list[bytes], blocks)))
            if not cursor:
                return chunks

    async def _read_updates(self) -> None:
        """Wait a moment for updates of all replicas, and take them in."""
        if not self._followed:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return
        by_stream = {f.keys.stream.encode(): f for f in self._followed.values()}
        numbers = await self._numbers(by_stream)
        reply = dict(await self._read({name: f.number for name, f in by_stream.items()}))
        for stream, followed in by_stream.items():
            if not self._is_followed(followed):
                continue
            if followed.is_synced:
                followed.directory.trust(followed.member)
            if entries := reply.get(stream):
                self._apply_all(followed, entries)
                await asyncio.sleep(0)
            elif numbers.get(stream, 0) > followed.number:
                self._miss(followed, numbers[stream])

    async def _numbers(self, by_stream: Mapping[bytes, _Followed]) -> dict[bytes, int]:
        """The last numbers of all replicas that have one, now and then; else none.

        A stream that is read afterwards has all updates up to there.
        """
        if time.monotonic() < self._check_at:
            return {}
        self._check_at = time.monotonic() + _CHECK_S
        numbers = await self._redis.mget([f.keys.number for f in by_stream.values()])
        return {stream: int(n) for stream, n in zip(by_stream, numbers, strict=True) if n}

    async def _read(self, numbers: Mapping[bytes, int]) -> list[tuple[bytes, Entries]]:
        """Entries of streams after these numbers, as soon as there are any."""
        since: dict[Any, Any] = {stream: f"{number}-0" for stream, number in numbers.items()}
        reply = await self._redis.xread(since, count=_UPDATES_AT_ONCE, block=_BLOCK_MS)
        return cast(list[tuple[bytes, Entries]], reply or [])

    def _apply_all(self, followed: _Followed, entries: Entries) -> None:
        """Take in a replica's updates, up to the first that does not fit."""
        for entry_id, fields in entries:
            if followed.is_wanted or not self._is_followed(followed):
                return
            try:
                self._apply(followed, Update.from_entry(entry_id, fields))
            except UpdateError as error:
                log.error("update of %s cannot be read: %s", followed.member, error)
                self._want(followed)

    def _apply(self, followed: _Followed, update: Update) -> None:
        """Take in an update if it is the next one."""
        directory, member = followed.directory, followed.member
        if update.rewritten or not followed.is_synced:
            return self._want(followed)
        if update.sequence_number != followed.number + 1:
            return self._miss(followed, update.sequence_number)
        followed.number = update.sequence_number
        if update.cleared:
            directory.clear(member)
        directory.remove(member, update.removed)
        directory.store(member, update.stored)
        directory.lower(member, update.lowered)
        return None

    def _miss(self, followed: _Followed, number: int) -> None:
        """Note that updates before this one, or this one itself, are gone."""
        log.info("updates of %s are missing: %d, then %d", followed.member, followed.number, number)
        self._on_gap()
        self._want(followed)

    def _want(self, followed: _Followed) -> None:
        """Have the replica's set read; until then what is known of it is doubtful."""
        followed.is_synced, followed.is_wanted = False, True
        followed.directory.doubt(followed.member)

    def _is_followed(self, followed: _Followed) -> bool:
        """Whether it still is: replicas may go while Redis is asked."""
        return self._followed.get(followed.member) is followed

    def _doubt_all(self, problem: str) -> None:
        """Note that Redis is away."""
        for followed in self._followed.values():
            followed.directory.doubt(followed.member)
        if not self._is_away:
            log.warning("replicas' caches cannot be followed: %s", problem)
        self._is_away = True
