"""Embeddings of prompts in Redis, each beside the name of the answer that the prompt got.

Keys, under the cluster's namespace, each with the group (of requests that may get each other's
answers) in braces: ``semantic:{GROUP}:order`` is a sorted set of names by the end of their time
(milliseconds of Redis's own clock), ``semantic:{GROUP}:vectors`` a hash of names and float32
values in little-endian order, ``semantic:{GROUP}:version`` the moment of the last change.
"""

from collections.abc import Sequence
from typing import NamedTuple

from redis.asyncio import Redis

_PUT = """
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
local order, vectors, version = KEYS[1], KEYS[2], KEYS[3]
local name, vector = ARGV[1], ARGV[2]
local ttl_ms, max_entries = tonumber(ARGV[3]), tonumber(ARGV[4])
local function drop(gone)
  redis.call('ZREM', order, gone)
  redis.call('HDEL', vectors, gone)
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', now_ms)) do drop(gone) end
redis.call('ZADD', order, now_ms + ttl_ms, name)
redis.call('HSET', vectors, name, vector)
local excess = redis.call('ZCARD', order) - max_entries
if excess > 0 then
  for _, gone in ipairs(redis.call('ZRANGE', order, 0, excess - 1)) do drop(gone) end
end
redis.call('SET', version, t[1] .. '.' .. t[2] .. '.' .. name)
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ttl_ms) end
"""

_CHANGES = """
local version = redis.call('GET', KEYS[2]) or ''
if version == ARGV[1] then return {version} end
local last = tonumber(ARGV[2]) - 1
return {version, redis.call('ZREVRANGE', KEYS[1], 0, last)}
"""


class Change(NamedTuple):
    """A group as it is now."""

    version: bytes
    """Differs from every other state's; empty if there is nothing."""
    names: list[bytes]
    """Youngest first."""


class SemanticStore:
    """Reads and writes groups, of which each keeps its youngest entries.

    Methods raise redis.exceptions.RedisError.
    """

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis = redis
        self._prefix = f"{namespace}:semantic"
        self._put = redis.register_script(_PUT)
        self._changes = redis.register_script(_CHANGES)

    async def put(
        self, group: str, name: bytes, vector: bytes, *, ttl_ms: int, max_entries: int
    ) -> None:
        """Keep a vector, in place of one of the same name; beyond `max_entries`, the oldest go."""
        keys = [self._key(group, kind) for kind in ("order", "vectors", "version")]
        await self._put(keys=keys, args=[name, vector, ttl_ms, max_entries])

    async def changes(self, group: str, version: bytes, max_entries: int) -> Change | None:
        """The group, unless it is still at `version`."""
        keys = [self._key(group, kind) for kind in ("order", "version")]
        found, *names = await self._changes(keys=keys, args=[version, max_entries])
        return Change(found, names[0]) if names else None

    async def vectors(self, group: str, names: Sequence[bytes]) -> list[bytes | None]:
        """The vectors of names; None for those that have gone meanwhile."""
        if not names:
            return []
        # The client's types take names for text.
        wanted = [name.decode() for name in names]
        found = await self._redis.hmget(self._key(group, "vectors"), wanted)
        return [value if isinstance(value, bytes) else None for value in found]

    def _key(self, group: str, kind: str) -> str:
        return f"{self._prefix}:{{{group}}}:{kind}"
