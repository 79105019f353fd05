"""What routers have sent to replicas and replicas do not report yet, shared through Redis.

Keys under the cluster's namespace: ``reservations`` is a hash of JSON by router,
``reservation-leases`` a sorted set of routers by lease end (milliseconds of Redis's own clock).
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from pydantic import TypeAdapter
from redis.asyncio import Redis

_EXCHANGE = """
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
if ARGV[2] == '{}' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
elseif ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('ZADD', KEYS[2], now_ms + ARGV[3], ARGV[1])
end
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms)
if #gone > 0 then
  redis.call('HDEL', KEYS[1], unpack(gone))
  redis.call('ZREM', KEYS[2], unpack(gone))
end
return redis.call('HGETALL', KEYS[1])
"""


class Reserved(NamedTuple):
    """What was sent to one replica."""

    sequences: int = 0
    prefill_tokens: int = 0


_BY_MEMBER = TypeAdapter(dict[str, Reserved])


class Reservations:
    """One router's view of the board. Methods raise redis.exceptions.RedisError."""

    def __init__(self, redis: Redis, namespace: str, router_id: str) -> None:
        self._router_id = router_id
        self._keys = [f"{namespace}:reservations", f"{namespace}:reservation-leases"]
        self._exchange = redis.register_script(_EXCHANGE)

    async def exchange(
        self, own: Mapping[str, Reserved] | None, lease_s: float
    ) -> Mapping[str, Reserved]:
        """What all other routers have sent to each replica, after putting up what this one has.

        `own` holds for `lease_s`; None leaves what was put up before. Replicas go by their member
        names. Raises pydantic.ValidationError for what is no reservation.
        """
        payload = "" if own is None else json.dumps(own)
        found = await self._exchange(
            keys=self._keys, args=[self._router_id, payload, int(lease_s * 1000)]
        )
        sequences, tokens = Counter[str](), Counter[str]()
        for name, reserved in zip(found[::2], found[1::2], strict=True):
            if name.decode() != self._router_id:
                for member, of_one in _BY_MEMBER.validate_json(reserved).items():
                    sequences[member] += of_one.sequences
                    tokens[member] += of_one.prefill_tokens
        return {member: Reserved(count, tokens[member]) for member, count in sequences.items()}
