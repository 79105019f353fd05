"""Waiting for what torch.distributed does, until it fails or nobody wants it any more."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import ProcessGroup, Work

_SLICE = timedelta(seconds=0.2)
"""Between looks whether a wait has been aborted, of which torch knows nothing."""


class TorchWait:
    """What one process group is waited for; after the first failure nothing is.

    The process group has a limit of its own for each operation.
    """

    def __init__(self, process_group: ProcessGroup) -> None:
        self.group: ProcessGroup | None = process_group
        """None once closed."""
        self.failure: str | None = None
        """Why nothing is waited for any more."""

    def start(self, operation: Callable[[], Work | None]) -> Work | None:
        """Begin an operation; None if it failed, or something before it did."""
        if self.failure is not None:
            return None
        try:
            return operation()
        except RuntimeError as error:  # torch has no type of its own for a backend's errors
            self._fail(error)
            return None

    def finish(self, work: Work | None) -> None:
        """Wait until an operation has ended, failed or been aborted."""
        if work is None:
            return
        while self.failure is None and not work.is_completed():
            with suppress(RuntimeError):  # the slice is over, or the work has failed: as seen below
                work.wait(_SLICE)
        try:
            if self.failure is None:
                work.wait()
        except RuntimeError as error:
            self._fail(error)

    def abort(self) -> None:
        """End waits under way and later ones; from any thread.

        Gloo itself goes on waiting, in threads of its own, until its limit.
        """
        self.failure = self.failure or "the exchange was aborted"
        if (group := self.group) is not None:
            group.abort()

    def close(self) -> None:
        """Let go of the process group, which may be in a wait until its limit."""
        self.failure = self.failure or "the exchange was closed"
        self.group = None

    def _fail(self, error: RuntimeError) -> None:
        self.failure = self.failure or str(error)
