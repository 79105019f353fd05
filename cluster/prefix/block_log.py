"""What a replica holds, in Redis: sets of block hashes, and a stream of what has become of them.

Sets, stream and sequence number change together, in one script each time. Every update names the
number that it follows: one that comes late, or twice, or to a Redis that has forgotten something,
changes nothing. Keys end with the lease of the replica, like its record in the registry.
"""

from collections.abc import Collection
from itertools import islice

from redis.asyncio import Redis

from cluster.prefix.events import PrefixKeys, Update, joined

MAX_UPDATES = 1024
"""Kept in the stream, roughly; who misses more reads the sets."""
CHUNK_BLOCKS = 4096
"""Written or read at a time, so that Redis has a moment for others in between."""
_LIFE_LEASES = 10

_EACH = """
local function each(command, key, hashes)
  for start = 1, #hashes, 16000 do
    local members = {}
    for i = start, math.min(start + 15999, #hashes), 16 do
      members[#members + 1] = string.sub(hashes, i, i + 15)
    end
    redis.call(command, key, unpack(members))
  end
end
"""

# KEYS: as PrefixKeys. ARGV: the number it follows, its own, life in ms, length of the stream,
# cleared, stored, lowered, removed; then the stream's fields.
_UPDATE = (
    _EACH
    + """
local last = redis.call('GET', KEYS[4])
if last == ARGV[2] then return 1 end
if last ~= ARGV[1] then return 0 end
if ARGV[5] == '1' then redis.call('DEL', KEYS[2], KEYS[3]) end
for set = 2, 3 do
  for part = 6, 8 do
    each(part == set + 4 and 'SADD' or 'SREM', KEYS[set], ARGV[part])
  end
end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], ARGV[2] .. '-0', unpack(ARGV, 9))
redis.call('SET', KEYS[4], ARGV[2])
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
return 1
"""
)

# KEYS: as PrefixKeys. ARGV: the last number, life in ms, blocks in each set.
_RENEW = """
if redis.call('GET', KEYS[4]) ~= ARGV[1] then return 0 end
for set = 2, 3 do
  if redis.call('SCARD', KEYS[set]) ~= tonumber(ARGV[set + 1]) then return 0 end
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
return 1
"""

# KEYS: the set that is being made. ARGV: life in ms, hashes.
_FILL = (
    _EACH
    + """
each('SADD', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""
)

# KEYS: as PrefixKeys, then the sets that were made. ARGV: number, life in ms, blocks in each set,
# then the stream's fields. Returns the number that Redis knows in the end, or -1.
_SWAP = """
local last = tonumber(redis.call('GET', KEYS[4]) or '0')
if last >= tonumber(ARGV[1]) then return last end
for set = 2, 3 do
  if redis.call('SCARD', KEYS[set + 3]) ~= tonumber(ARGV[set + 1]) then return -1 end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
for set = 2, 3 do
  if ARGV[set + 1] ~= '0' then redis.call('RENAME', KEYS[set + 3], KEYS[set]) end
end
redis.call('XADD', KEYS[1], ARGV[1] .. '-0', unpack(ARGV, 5))
redis.call('SET', KEYS[4], ARGV[1])
for key = 1, 4 do redis.call('PEXPIRE', KEYS[key], ARGV[2]) end
return tonumber(ARGV[1])
"""


class BlockLog:
    """Writes what one incarnation of a replica holds. Methods raise RedisError or OSError; then
    what they were to write may have been written, or may be yet."""

    def __init__(self, redis: Redis, namespace: str, member: str, lease_s: float) -> None:
        self._redis = redis
        self._keys = PrefixKeys.of(namespace, member)
        self._life_ms = int(lease_s * 1000) * _LIFE_LEASES
        self._update = redis.register_script(_UPDATE)
        self._renew = redis.register_script(_RENEW)
        self._fill = redis.register_script(_FILL)
        self._swap = redis.register_script(_SWAP)

    async def append(self, update: Update) -> bool:
        """Write an update; returns whether Redis knows the one before it, as it must."""
        number = update.sequence_number
        counts = (number - 1, number, self._life_ms, MAX_UPDATES, int(update.cleared))
        parts = (update.stored, update.lowered, update.removed, *_flat(update))
        return bool(await self._update(self._keys, [*map(str, counts), *parts]))

    async def renew(self, number: int, num_resident: int, num_lowered: int) -> bool:
        """Prolong the keys' life; returns whether Redis knows that update, and so many blocks."""
        counts = [number, self._life_ms, num_resident, num_lowered]
        return bool(await self._renew(self._keys, counts))

    async def rewrite(
        self, number: int, resident: Collection[bytes], lowered: Collection[bytes]
    ) -> int:
        """Write the whole sets, in place of whatever there is.

        Returns the last number that Redis knows then: `number` if all is well, -1 if a set was
        lost while it was written, or a higher one, after which to number on.
        """
        made = [f"{key}:{number}" for key in (self._keys.resident, self._keys.lowered)]
        for key, blocks in zip(made, (resident, lowered), strict=True):
            rest = iter(blocks)
            while chunk := joined(islice(rest, CHUNK_BLOCKS)):
                await self._fill([key], [self._life_ms, chunk])
        counts = (number, self._life_ms, len(resident), len(lowered))
        parts = _flat(Update(number, rewritten=True))
        return int(await self._swap([*self._keys, *made], [*map(str, counts), *parts]))

    async def delete(self) -> None:
        """Leave nothing behind."""
        await self._redis.delete(*self._keys)


def _flat(update: Update) -> list[bytes]:
    """The fields of its entry, names and values by turns."""
    return [part for field in update.fields().items() for part in field]
