"""The catalog as one router knows it."""

import asyncio
import time
from collections.abc import Mapping

import structlog
from pydantic import ValidationError
from redis.exceptions import RedisError

from cluster.catalog import CatalogStore, Entry, parse_entry

log = structlog.get_logger(__name__)

_PERIOD_S = 0.5


class CatalogFollower:
    """Reads the catalog twice a second; while Redis is away, it stays as it was last seen.

    `run` is to be running in a task. An entry that cannot be read is left out, and logged.
    """

    def __init__(self, store: CatalogStore) -> None:
        self.entries: Mapping[str, Entry] = {}
        self._store = store
        self._seen: Mapping[str, bytes] = {}
        self._read_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """How old the knowledge of the catalog is."""
        return time.monotonic() - self._read_at

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(_PERIOD_S)

    async def read(self) -> None:
        """Look for news now, if Redis can be asked."""
        try:
            found = await self._store.read()
        except (RedisError, OSError) as error:
            log.warning("the catalog cannot be read", error=str(error))
            return
        self._read_at = time.monotonic()
        if found != self._seen:
            self._seen = found
            self.entries = dict(_parsed(found))
            log.info("catalog read", names=sorted(self.entries))


def _parsed(found: Mapping[str, bytes]) -> list[tuple[str, Entry]]:
    entries = []
    for name, text in found.items():
        try:
            entries.append((name, parse_entry(text)))
        except ValidationError as error:
            log.error("an entry of the catalog is broken", name=name, error=str(error))
    return entries
