"""Who a request comes from."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError

from cluster.api_keys import parse_api_key
from cluster.errors import Reason, RequestError
from cluster.tenants import ANONYMOUS, Holder, Tenant
from router.call import Call
from router.pause import Pause

log = structlog.get_logger(__name__)

_KEEP_S = 5.0
"""How long a key that was taken away may still be used."""
_MAX_KEPT = 10_000
_PAUSE_S = 1.0
_PATIENCE_S = 0.5
"""How long a directory that does not answer is waited for."""


class Directory(Protocol):
    """Knows keys, as cluster.tenants.TenantStore does."""

    async def find(self, key_id: str) -> Holder | None:
        """Whom a key stands for. Raises RedisError, OSError, pydantic.ValidationError."""


@dataclass(slots=True)
class _Known:
    holder: Holder
    read_at: float


class Authenticator:
    """Finds the tenant of a key, and remembers it for some seconds.

    While the directory cannot be read, keys that were seen before are taken as they were; others
    are refused.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        require_api_key: bool,
        max_kept: int = _MAX_KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._require_api_key = require_api_key
        self._max_kept = max_kept
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._reading: dict[str, asyncio.Task[Holder | None]] = {}
        self._pause = Pause(_PAUSE_S, clock)

    async def tenant(self, call: Call) -> Tenant:
        """The tenant that a call comes from; the anonymous one where no keys are asked for.

        Raises RequestError (UNAUTHENTICATED, AUTH_UNAVAILABLE).
        """
        if not self._require_api_key:
            return ANONYMOUS
        scheme, _, text = call.authorization.partition(" ")
        if not call.authorization:
            raise _unauthenticated("no API key: send authorization: Bearer KEY")
        key = parse_api_key(text.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise _unauthenticated("the authorization is not of the form: Bearer tk-ID-SECRET")
        holder = await self._find(key.id)
        if holder is None or not holder.key.matches(key):
            raise _unauthenticated("this API key is not known")
        return holder.tenant

    async def require_admin(self, call: Call) -> None:
        """Raises RequestError (as `tenant`, and PERMISSION_DENIED) unless an operator calls."""
        tenant = await self.tenant(call)
        if not tenant.is_admin:
            raise RequestError(
                Reason.PERMISSION_DENIED, f"tenant {tenant.name} is not an administrator"
            )

    async def _find(self, key_id: str) -> Holder | None:
        known = self._known.get(key_id)
        if known is not None:
            self._known.move_to_end(key_id)
            if self._pause.is_on or self._clock() - known.read_at < _KEEP_S:
                return known.holder
        if self._pause.is_on:
            raise _unavailable()
        reading = self._reading.get(key_id)
        if reading is None:
            reading = self._reading[key_id] = asyncio.create_task(self._read(key_id))
            reading.add_done_callback(partial(self._end_reading, key_id))
        # Shielded: others may wait for it too.
        return await asyncio.shield(reading)

    def _end_reading(self, key_id: str, reading: asyncio.Task[Holder | None]) -> None:
        del self._reading[key_id]
        if not reading.cancelled():
            reading.exception()  # whoever waits for it raises it; there may be nobody any more

    async def _read(self, key_id: str) -> Holder | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                holder = await self._directory.find(key_id)
        except ValidationError as error:
            log.error("the record of a key is broken", key=key_id, error=str(error))
            holder = None
        except (RedisError, OSError) as error:
            self._pause.begin()
            log.warning("keys cannot be read", error=str(error))
            if known := self._known.get(key_id):
                return known.holder
            raise _unavailable() from error
        self._known.pop(key_id, None)
        if holder is not None:
            self._known[key_id] = _Known(holder, self._clock())
            if len(self._known) > self._max_kept:
                self._known.popitem(last=False)
        return holder


def _unauthenticated(message: str) -> RequestError:
    return RequestError(Reason.UNAUTHENTICATED, message)


def _unavailable() -> RequestError:
    return RequestError(
        Reason.AUTH_UNAVAILABLE,
        "this API key was not seen here lately, and cannot be checked now",
        retry_after_s=_PAUSE_S,
    )
