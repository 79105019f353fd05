"""Tells other routers what this one has sent to replicas, and hears it from them."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

import structlog
from prometheus_client import Counter
from pydantic import ValidationError
from redis.exceptions import RedisError

from cluster.reservations import Reservations, Reserved
from router.fleet.load_estimate import LoadEstimate

log = structlog.get_logger(__name__)

_PERIOD_S = 0.1
_LEASE_S = 2.0
_RENEW_S = 1.0
"""After which what has not changed is put up again."""


class SharedLoad:
    """Exchanges with the other routers ten times a second, so that all of them choose like one.

    While Redis is away, each router goes on with what it knows itself, and counts the failures.
    """

    def __init__(
        self,
        board: Reservations,
        estimates: Callable[[], Iterable[LoadEstimate]],
        failures: Counter,
    ) -> None:
        self._board = board
        self._estimates = estimates
        self._failures = failures
        self._put_up: Mapping[str, Reserved] = {}
        self._put_up_at = 0.0
        self._is_away = False

    async def run(self) -> None:
        """Exchange until cancelled."""
        while True:
            await self.exchange()
            await asyncio.sleep(_PERIOD_S)

    async def exchange(self) -> None:
        """Put up what has changed, and take over what others have put up."""
        estimates = {estimate.member: estimate for estimate in self._estimates()}
        own = {m: e.unreported for m, e in estimates.items() if e.unreported != Reserved()}
        now = time.monotonic()
        is_due = bool(own) and now - self._put_up_at > _RENEW_S
        try:
            news = own if own != self._put_up or is_due else None
            others = await self._board.exchange(news, _LEASE_S)
        except (RedisError, OSError, ValidationError) as error:
            self._failures.inc()
            if not self._is_away:
                log.warning("other routers' load cannot be read", error=str(error))
            self._is_away, others = True, {}
        else:
            self._is_away = False
            if news is not None:
                self._put_up, self._put_up_at = own, now
        for member, estimate in estimates.items():
            estimate.share(others.get(member, Reserved()))
