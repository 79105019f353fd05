"""Shows people how far a replica's loading is."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog
from redis.exceptions import RedisError

from cluster.loading import LoadingBoard, LoadingProgress

log = structlog.get_logger(__name__)

_PERIOD_S = 0.2


@asynccontextmanager
async def shown_progress(
    board: LoadingBoard, replica_id: str
) -> AsyncIterator[Callable[[int, int], None]]:
    """Gives what is to be told (layers loaded, layers in all), from any thread."""
    latest = LoadingProgress(replica_id=replica_id, done=0, total=0)

    def note(done: int, total: int) -> None:
        nonlocal latest
        latest = LoadingProgress(replica_id=replica_id, done=done, total=total)

    async def show() -> None:
        while True:
            await _tolerate(board.put(latest))
            await asyncio.sleep(_PERIOD_S)

    showing = asyncio.create_task(show())
    try:
        yield note
    finally:
        showing.cancel()
        await _tolerate(board.remove(replica_id))


async def _tolerate(writing: Awaitable[None]) -> None:
    """Loading goes on without Redis."""
    try:
        await writing
    except (RedisError, OSError) as error:
        log.warning("progress cannot be shown", error=str(error))
