"""The replicas that live, and the models they serve, in Redis.

Keys, all under the cluster's namespace: ``replicas`` is a sorted set of ``id@epoch`` by lease end
(milliseconds of Redis's own clock, so that hosts' clocks do not matter), ``replica:id@epoch`` a
record, ``model:NAME`` a card, ``epoch`` the last epoch given out. ``routers`` and ``router:ID`` are
the same for routers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from pydantic import BaseModel, ConfigDict, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.model_card import ModelCard

log = logging.getLogger(__name__)

_RENEW = """
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3] * 10)
return redis.call('ZADD', KEYS[1], now_ms + ARGV[3], ARGV[1])
"""

# The clock keeps epochs growing even if Redis forgets the last one in a restart.
_NEXT_EPOCH = """
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
local epoch = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1, now_ms)
redis.call('SET', KEYS[1], string.format('%.0f', epoch))
return epoch
"""

_LIVE = """
local t = redis.call('TIME')
local now_ms = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
local records = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local record = redis.call('GET', KEYS[2] .. member)
  if record then records[#records + 1] = record end
end
return records
"""


class ReplicaRecord(BaseModel):
    """Where one incarnation of a replica is found."""

    model_config = ConfigDict(frozen=True)

    replica_id: str
    epoch: int
    model: str
    address: str
    """host:port of its gRPC server."""
    metrics_address: str = ""
    """host:port of its Prometheus endpoint."""
    pid: int = 0
    """Process of the leader, for operators."""

    @property
    def member(self) -> str:
        """The name of this incarnation."""
        return f"{self.replica_id}@{self.epoch}"


class RouterRecord(BaseModel):
    """Where a router is found."""

    model_config = ConfigDict(frozen=True)

    router_id: str
    grpc_address: str
    """host:port of its gRPC server."""
    http_address: str
    """host:port of its HTTP server."""
    started_at: float
    """In seconds since 1970."""


class Registry:
    """Reads and writes the cluster's membership. Methods raise redis.exceptions.RedisError."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self.redis = redis
        self.namespace = namespace
        self._renew = redis.register_script(_RENEW)
        self._live = redis.register_script(_LIVE)
        self._next_epoch = redis.register_script(_NEXT_EPOCH)

    def _key(self, *parts: str) -> str:
        return ":".join((self.namespace, *parts))

    async def next_epoch(self) -> int:
        """A number higher than any given out before."""
        return int(await self._next_epoch(keys=[self._key("epoch")]))

    async def renew(self, record: ReplicaRecord, lease_s: float) -> bool:
        """Enter the replica, or prolong its lease: it gets traffic for another `lease_s`.

        Returns whether it was entered, that is, was not known or had been forgotten.
        """
        num_entered = await self._renew(
            keys=[self._key("replicas"), self._key("replica", record.member)],
            args=[record.member, record.model_dump_json(), int(lease_s * 1000)],
        )
        return bool(num_entered)

    async def remove(self, record: ReplicaRecord) -> None:
        """End the replica's lease at once."""
        await self.redis.zrem(self._key("replicas"), record.member)
        await self.redis.delete(self._key("replica", record.member))

    async def replicas(self) -> list[ReplicaRecord]:
        """All replicas whose lease has not ended."""
        found = await self._live(keys=[self._key("replicas"), self._key("replica", "")])
        return [ReplicaRecord.model_validate_json(record) for record in found]

    async def enter_router(self, record: RouterRecord, lease_s: float) -> None:
        """Enter a router, or prolong its lease: it is found for another `lease_s`."""
        await self._renew(
            keys=[self._key("routers"), self._key("router", record.router_id)],
            args=[record.router_id, record.model_dump_json(), int(lease_s * 1000)],
        )

    async def remove_router(self, router_id: str) -> None:
        """End a router's lease at once."""
        await self.redis.zrem(self._key("routers"), router_id)
        await self.redis.delete(self._key("router", router_id))

    async def routers(self) -> list[RouterRecord]:
        """All routers whose lease has not ended."""
        found = await self._live(keys=[self._key("routers"), self._key("router", "")])
        return [RouterRecord.model_validate_json(record) for record in found]

    async def publish_model(self, card: ModelCard) -> None:
        """Make a model known to the routers."""
        await self.redis.set(self._key("model", card.name), card.model_dump_json())

    async def model(self, name: str) -> ModelCard | None:
        """The card of the model of this name."""
        found = await self.redis.get(self._key("model", name))
        return None if found is None else ModelCard.model_validate_json(found)

    async def watch(self, period_s: float = 0.5) -> AsyncIterator[list[ReplicaRecord]]:
        """The live replicas, again every `period_s`; while Redis is away, nothing is yielded."""
        while True:
            try:
                yield await self.replicas()
            except (RedisError, OSError, ValidationError) as error:
                log.warning("registry cannot be read: %s", error)
            await asyncio.sleep(period_s)
