"""How far the replicas are that are loading weights, for people who wait for them."""

from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis

_KEPT_S = 60


class LoadingProgress(BaseModel):
    """What a starting replica has done."""

    model_config = ConfigDict(frozen=True)

    replica_id: str
    done: int
    """Layers loaded."""
    total: int
    """Layers in all."""


class LoadingBoard:
    """Where starting replicas write their progress. Methods raise redis.exceptions.RedisError."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis = redis
        self._key = f"{namespace}:loading"

    async def put(self, progress: LoadingProgress) -> None:
        """Write how far a replica is."""
        await self._redis.hset(self._key, progress.replica_id, progress.model_dump_json())
        await self._redis.expire(self._key, _KEPT_S)

    async def remove(self, replica_id: str) -> None:
        """Strike out a replica that has loaded, or given up."""
        await self._redis.hdel(self._key, replica_id)

    async def read(self) -> list[LoadingProgress]:
        """All replicas that are loading."""
        found = await self._redis.hgetall(self._key)
        return [LoadingProgress.model_validate_json(text) for text in found.values()]
