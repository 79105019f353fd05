"""Answers in Redis.

Keys, under the cluster's namespace, each with the scope (who may see the answers) in braces:
``answers:{SCOPE}:DIGEST`` is a value, ``answers:{SCOPE}:order`` a sorted set of digests by the end
of their time (milliseconds of Redis's own clock), ``answers:{SCOPE}:sizes`` a hash of their bytes,
and of the sum under the empty name.
"""

from redis.asyncio import Redis

# Time is the same for all, so that the order of ends is that of coming.
_PUT = """
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
local order, sizes, prefix, member, value = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2]
local ttl_ms, max_bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
if redis.call('EXISTS', order) == 0 then redis.call('DEL', sizes) end
local total = tonumber(redis.call('HGET', sizes, '') or '0')
local function drop(name)
  total = total - tonumber(redis.call('HGET', sizes, name) or '0')
  redis.call('HDEL', sizes, name)
  redis.call('ZREM', order, name)
  redis.call('DEL', prefix .. name)
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', now_ms)) do drop(name) end
drop(member)
while total + #value > max_bytes do
  local oldest = redis.call('ZRANGE', order, 0, 0)[1]
  if not oldest then return 0 end
  drop(oldest)
end
redis.call('SET', prefix .. member, value, 'PX', ttl_ms)
redis.call('ZADD', order, now_ms + ttl_ms, member)
redis.call('HSET', sizes, member, #value, '', total + #value)
redis.call('PEXPIRE', order, ttl_ms)
redis.call('PEXPIRE', sizes, ttl_ms)
return 1
"""


class AnswerStore:
    """Reads and writes values by scope and digest. Methods raise redis.exceptions.RedisError."""

    def __init__(self, redis: Redis, namespace: str, *, ttl_ms: int, max_bytes: int) -> None:
        """`max_bytes` is the sum of a scope's values; beyond it, the oldest go."""
        self._redis = redis
        self._prefix = f"{namespace}:answers"
        self._ttl_ms = ttl_ms
        self._max_bytes = max_bytes
        self._put = redis.register_script(_PUT)

    async def get(self, scope: str, digest: bytes) -> bytes | None:
        """The value, if there is one."""
        found = await self._redis.get(self._key(scope, digest.hex()))
        assert not isinstance(found, str), "clients do not decode"
        return found

    async def put(self, scope: str, digest: bytes, value: bytes) -> None:
        """Keep a value for the time that answers have; not one that is larger than all may be."""
        keys = [self._key(scope, name) for name in ("order", "sizes", "")]
        await self._put(keys=keys, args=[digest.hex(), value, self._ttl_ms, self._max_bytes])

    def _key(self, scope: str, name: str) -> str:
        return f"{self._prefix}:{{{scope}}}:{name}"
