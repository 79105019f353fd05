"""A replica's place in the registry."""

import asyncio
from time import monotonic

import structlog
from redis.exceptions import RedisError

from cluster.cancelling import raise_if_cancelled
from cluster.model_card import ModelCard
from cluster.registry import Registry, ReplicaRecord

log = structlog.get_logger(__name__)

_RENEWALS_PER_LEASE = 3
_RETRY_S = 0.5


async def claim_epoch(registry: Registry) -> int:
    """A new epoch. Waits for Redis as long as it takes: without an epoch there is no identity."""
    while True:
        try:
            return await registry.next_epoch()
        except (RedisError, OSError) as error:
            log.warning("waiting for redis to give an epoch", error=str(error))
            await asyncio.sleep(_RETRY_S)


class Lease:
    """Enters a replica and its model, and keeps them there; `run` is to be running in a task.

    While Redis is away the replica goes on: routers that know it keep it. A Redis that has
    forgotten everything is told again.
    """

    def __init__(
        self, registry: Registry, record: ReplicaRecord, card: ModelCard, lease_s: float
    ) -> None:
        self._registry = registry
        self._record = record
        self._card = card
        self._lease_s = lease_s
        self._is_entered = False

    async def run(self) -> None:
        """Renew until cancelled; then leave the registry."""
        try:
            while True:
                raise_if_cancelled()
                # Timed from the start, so that a slow Redis does not use up the lease.
                due = monotonic() + self._lease_s / _RENEWALS_PER_LEASE
                await self._renew()
                await asyncio.sleep(due - monotonic())
        finally:
            await self._release()

    async def _renew(self) -> None:
        try:
            if not self._is_entered:
                # Before the replica itself: a router that sees it looks for its card.
                await self._registry.publish_model(self._card)
            if await self._registry.renew(self._record, self._lease_s):
                if self._is_entered:  # once before, and Redis has forgotten it
                    await self._registry.publish_model(self._card)
                log.info("registered", address=self._record.address)
            self._is_entered = True
        except (RedisError, OSError) as error:
            log.warning("lease cannot be renewed", error=str(error))

    async def _release(self) -> None:
        try:
            await self._registry.remove(self._record)
        except (RedisError, OSError) as error:
            log.warning("lease cannot be released, it will end by itself", error=str(error))
