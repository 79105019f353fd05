"""A router's entry in the registry."""

import asyncio

import structlog
from redis.exceptions import RedisError

from cluster.registry import Registry, RouterRecord

log = structlog.get_logger(__name__)

_PERIOD_S = 1.0
_LEASE_S = 5.0


class RouterLease:
    """Keeps the entry as long as `run` runs; `end` takes it back."""

    def __init__(self, registry: Registry, record: RouterRecord) -> None:
        self._registry = registry
        self._record = record

    async def run(self) -> None:
        """Renew the lease until cancelled; while Redis is away, try on."""
        while True:
            try:
                await self._registry.enter_router(self._record, _LEASE_S)
            except (RedisError, OSError) as error:
                log.warning("router cannot be entered in the registry", error=str(error))
            await asyncio.sleep(_PERIOD_S)

    async def end(self) -> None:
        """Leave the registry; where that fails, the lease ends by itself."""
        try:
            await self._registry.remove_router(self._record.router_id)
        except (RedisError, OSError) as error:
            log.warning("router cannot leave the registry", error=str(error))
