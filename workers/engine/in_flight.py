"""Steps on their way through the ranks."""

from collections import deque
from typing import Protocol

from workers.engine.batch import Batch
from workers.engine.model_runner import StepResult, Submitted
from workers.engine.scheduler import Scheduler
from workers.engine.stopwatch import Stopwatch


class StepRunner(Protocol):
    """Computes batches; see ModelRunner."""

    def submit(self, batch: Batch) -> Submitted:
        """Tell all ranks of a batch that is not empty."""

    def collect(self, submitted: Submitted) -> StepResult:
        """Wait for what was submitted first of all that is not collected."""


class InFlight:
    """Batches that have been submitted and not yet collected, at most as many as there are stages:
    while one stage works on a batch, the others work on those before and after it."""

    def __init__(
        self, scheduler: Scheduler, runner: StepRunner, watch: Stopwatch, most: int
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._watch = watch
        self._most = most
        self._submitted: deque[Submitted] = deque()

    def __len__(self) -> int:
        return len(self._submitted)

    def submit(self) -> None:
        """Schedule and submit batches, as long as there is anything to compute and room for it."""
        while len(self._submitted) < self._most:
            batch = self._scheduler.schedule()
            self._watch.lap("schedule")
            if not batch.chunks:
                return
            self._submitted.append(self._runner.submit(batch))

    def collect(self) -> tuple[Batch, StepResult]:
        """The oldest batch, when it is computed, and what came of it."""
        submitted = self._submitted.popleft()
        return submitted.batch, self._runner.collect(submitted)
