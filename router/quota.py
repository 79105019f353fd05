"""What tenants may use in a minute and at a time, over all routers."""

import asyncio
import math
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.errors import Reason, RequestError
from cluster.tenants import Tenant, TenantLimits
from router.mean_output import MeanOutput
from router.pause import Pause
from router.quota_script import RENEW, RESERVE, SETTLE, SLICES
from router.service_rate import ServiceRate

log = structlog.get_logger(__name__)

_WINDOW_S = 60.0
_LEASE_S = 10.0
"""After this, the places of a router that was killed are free again."""
_PAUSE_S = 1.0
_PATIENCE_S = 0.5
"""How long a request waits for a Redis that does not answer."""
_MAX_CALLS = 32
"""Connections to Redis at a time."""


@dataclass(slots=True)
class Use:
    """What a request may use, and what it has used."""

    estimate: int
    """Tokens reserved."""
    prompt_tokens: int
    n: int
    output_tokens: int = 0
    """So far; for the one who holds the reservation to set."""
    is_sent: bool = False
    """Whether a replica was given work; for the one who holds the reservation to set."""
    slice: int | None = None
    """Where it was counted; None if it was not."""
    lease: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def tokens(self) -> int:
        """Tokens that it has used."""
        return self.prompt_tokens + self.output_tokens if self.is_sent else 0


class Quota:
    """Reserves what a request is expected to use, and settles what it has used.

    `run` is to be running in a task. While Redis is away there are no limits: `on_away` is called
    for each request that was let in unseen.
    """

    def __init__(
        self,
        redis: Redis,
        namespace: str,
        on_away: Callable[[], None],
        *,
        window_s: float = _WINDOW_S,
        lease_s: float = _LEASE_S,
    ) -> None:
        self._prefix = f"{namespace}:quota"
        self._on_away = on_away
        self._slice_us = round(window_s * 1e6 / SLICES)
        self._lease_s = lease_s
        self._reserve = redis.register_script(RESERVE)
        self._settle = redis.register_script(SETTLE)
        self._renew = redis.register_script(RENEW)
        self._calls = asyncio.Semaphore(_MAX_CALLS)
        self._pause = Pause(_PAUSE_S, time.monotonic)
        self._outputs = MeanOutput()
        self._rates: dict[str, ServiceRate] = {}
        self._leases: defaultdict[str, set[str]] = defaultdict(set)
        self._pending: set[asyncio.Task[Any]] = set()
        """What Redis has been asked or told for requests that have ended."""

    @asynccontextmanager
    async def reserve(
        self, tenant: Tenant, *, prompt_tokens: int, n: int, max_tokens: int
    ) -> AsyncIterator[Use]:
        """Let in a request of `n` samples of up to `max_tokens` tokens each.

        At the end, however it comes, what was not used is given back. Raises RequestError
        (QUOTA_EXCEEDED).
        """
        limits = tenant.limits
        output = n * min(max_tokens, math.ceil(self._outputs.of(tenant.name)))
        use = Use(prompt_tokens + output, prompt_tokens, n)
        if not _any(limits):
            yield use
            return
        if limits.tokens_per_minute is not None:
            _check_fits(prompt_tokens, limits.tokens_per_minute)
            use.estimate = min(use.estimate, limits.tokens_per_minute)
        if self._pause.is_on:
            self._on_away()
            yield use
            return
        asking = asyncio.create_task(self._ask(tenant, use))
        try:
            await self._wait_for(asking)
            yield use
        finally:
            # Redis may count what nobody waits for any more: that, too, is given back.
            self._pending.add(asking)
            asking.add_done_callback(partial(self._end, tenant, use))

    async def run(self) -> None:
        """Prolong the leases of what is under way, until cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            await self.renew()

    async def renew(self) -> None:
        """Prolong them now."""
        lease_us = round(self._lease_s * 1e6)
        for tenant, leases in list(self._leases.items()):
            try:
                async with self._calls:
                    await self._renew(keys=self._keys(tenant)[1:], args=[lease_us, *leases])
            except (RedisError, OSError) as error:
                log.warning("leases cannot be prolonged", tenant=tenant, error=str(error))

    async def close(self) -> None:
        """Wait until all that has ended is settled."""
        while self._pending:
            await asyncio.wait(self._pending)

    async def _ask(self, tenant: Tenant, use: Use) -> RequestError | None:
        """Have it counted what a request may use; the refusal, if it is too much.

        Raises RedisError, OSError.
        """
        limits = tenant.limits
        arguments = (
            *(self._slice_us, limits.requests_per_minute or 0, limits.tokens_per_minute or 0),
            *(limits.max_concurrency or 0, use.estimate, use.lease, round(self._lease_s * 1e6)),
        )
        async with self._calls:
            exceeded, number = await self._reserve(keys=self._keys(tenant.name), args=arguments)
        if exceeded:
            return self._refusal(tenant, exceeded.decode(), int(number) / 1e6)
        use.slice = int(number)
        if limits.max_concurrency:
            self._begin_lease(tenant.name, use.lease)
        return None

    async def _wait_for(self, asking: asyncio.Task[RequestError | None]) -> None:
        """Raises the refusal, if there is one and it comes in time."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                refusal = await asyncio.shield(asking)
        except (RedisError, OSError) as error:
            log.warning("quota cannot be read", error=str(error))
            self._pause.begin()
            self._on_away()
            return
        if refusal is not None:
            raise refusal

    def _begin_lease(self, tenant: str, lease: str) -> None:
        if tenant not in self._leases:
            self._rates.setdefault(tenant, ServiceRate(time.monotonic)).begin()
        self._leases[tenant].add(lease)

    def _refusal(self, tenant: Tenant, exceeded: str, seconds: float) -> RequestError:
        limits = tenant.limits
        what = {
            "requests": f"{limits.requests_per_minute} requests a minute",
            "tokens": f"{limits.tokens_per_minute} tokens a minute",
            "concurrency": f"{limits.max_concurrency} requests at a time",
        }[exceeded]
        if exceeded == "concurrency":
            rate = self._rates.get(tenant.name)
            seconds = 1.0 if rate is None else rate.time_to_next_end_s()
        return RequestError(
            Reason.QUOTA_EXCEEDED,
            f"tenant {tenant.name} has used up its {what}",
            retry_after_s=seconds,
        )

    def _end(self, tenant: Tenant, use: Use, asking: asyncio.Task[RequestError | None]) -> None:
        """It has ended, and Redis has answered, or failed."""
        self._pending.discard(asking)
        if use.output_tokens:
            self._outputs.learn(tenant.name, use.output_tokens / use.n)
        if asking.cancelled() or asking.exception() or use.slice is None:
            return
        leases = self._leases.get(tenant.name, set())
        if use.lease in leases:
            leases.remove(use.lease)
            self._rates[tenant.name].end()
            if not leases:
                del self._leases[tenant.name]
        # Not waited for: the client has its answer, or has gone.
        settling = asyncio.create_task(self._give_back(tenant.name, use, use.slice))
        self._pending.add(settling)
        settling.add_done_callback(self._pending.discard)

    async def _give_back(self, tenant: str, use: Use, counted_in: int) -> None:
        requests = 0 if use.is_sent else -1
        correction = use.tokens - use.estimate
        try:
            async with self._calls:
                await self._settle(
                    keys=self._keys(tenant),
                    args=[self._slice_us, counted_in, requests, correction, use.lease],
                )
        except (RedisError, OSError) as error:
            log.warning("use cannot be settled", tenant=tenant, error=str(error))

    def _keys(self, tenant: str) -> list[str]:
        # In braces, so that a Redis of several nodes keeps them together.
        return [f"{self._prefix}:{{{tenant}}}:{kind}" for kind in ("window", "leases")]


def _any(limits: TenantLimits) -> bool:
    return any((limits.requests_per_minute, limits.tokens_per_minute, limits.max_concurrency))


def _check_fits(prompt_tokens: int, tokens_per_minute: int) -> None:
    """Whether the prompt alone is less than a minute's tokens: it could never be let in."""
    if prompt_tokens > tokens_per_minute:
        raise RequestError(
            Reason.QUOTA_EXCEEDED,
            f"the prompt has {prompt_tokens} tokens, and {tokens_per_minute} a minute are allowed",
        )
