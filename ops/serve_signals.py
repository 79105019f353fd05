"""SIGINT and SIGTERM, as commands take them that run until they are told to stop."""

import asyncio
import os
import signal
from collections.abc import Coroutine

EXIT_INTERRUPTED = 130


class StopSignals:
    """The first signal sets `told`; the second ends this process, and the reaper all the others."""

    def __init__(self) -> None:
        self.told = asyncio.Event()

    def heed(self) -> None:
        """Take the signals; again when somebody else has put other handlers in their place."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    async def until_told(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` to its end, or until a signal comes. Raises what it raises."""
        working, telling = asyncio.create_task(work), asyncio.create_task(self.told.wait())
        try:
            await asyncio.wait({working, telling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            telling.cancel()
            working.cancel()
            await asyncio.wait({working})
        if not working.cancelled():
            working.result()

    def _on_signal(self) -> None:
        if self.told.is_set():
            os._exit(EXIT_INTERRUPTED)
        self.told.set()
