"""SIGINT and SIGTERM, as `trunkline serve` takes them."""

import asyncio
import os
import signal

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

    def _on_signal(self) -> None:
        if self.told.is_set():
            os._exit(EXIT_INTERRUPTED)
        self.told.set()
