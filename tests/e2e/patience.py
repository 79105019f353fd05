"""Waiting for what nobody can be asked to announce."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PATIENCE_S = 120.0
"""Long enough for a busy machine; that it passes is a failure, never a measurement."""
_POLL_S = 0.05


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Return when `holds`. Raises AssertionError, which says `what`, if that takes too long."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(_POLL_S)


async def eventually(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    """The same for asyncio."""
    end = time.monotonic() + PATIENCE_S
    while not await holds():
        assert time.monotonic() < end, f"waited in vain until {what}"
        await asyncio.sleep(_POLL_S)
