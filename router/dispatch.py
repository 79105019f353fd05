"""A request's way to a replica."""

import asyncio
import time

from trunkline.internal.v1 import replica_pb2 as internal

from cluster.errors import Reason, RequestError
from router.fleet.replica_link import ReplicaLink
from router.fleet.ticket import Event, ReplicaLost, Ticket
from router.job import Job
from router.metrics import Metrics

_RETRY_AFTER_S = 1.0


class Dispatch:
    """Sends a job to a replica, and to another one if the first cannot begin it.

    A replica that refuses it is not asked again. One that is lost before the first token counts
    as an attempt, of which there are `max_attempts`.
    """

    def __init__(
        self, job: Job, metrics: Metrics, *, max_attempts: int, max_waiting_s: float
    ) -> None:
        self._job = job
        self._metrics = metrics
        self._max_attempts = max_attempts
        self._max_waiting_s = max_waiting_s
        self._refused: set[str] = set()
        self._lost: list[str] = []
        self._link: ReplicaLink | None = None
        self._ticket: Ticket | None = None
        self._begun = False
        self._sent_at = 0.0

    @property
    def replica(self) -> str:
        """The replica that has the request now, or had it last."""
        return self._link.member if self._link else ""

    @property
    def sent_at(self) -> float:
        """When it was sent there, on time.monotonic()."""
        return self._sent_at

    @property
    def _cause(self) -> str:
        """Why a replica is wanted."""
        return "lost" if self._lost else "refused" if self._refused else "new"

    async def take(self) -> list[Event]:
        """What the replica has sent since the last time.

        Raises RequestError (NO_REPLICA, QUEUE_FULL, REPLICA_LOST) if none can serve the request.
        """
        while True:
            if self._ticket is None:
                self._ticket = await self._send()
            try:
                events = await self._ticket.take()
            except ReplicaLost as error:
                self._give_up_on_replica(str(error))
                continue
            if not self._begun and self._must_move(events[0]):
                continue
            self._begun = True
            return events

    def cancel(self) -> None:
        """Tell the replica that nobody waits any more; harmless after the end."""
        if self._ticket is not None:
            self._ticket.cancel()

    async def _send(self) -> Ticket:
        self._link = await self._ready_replica()
        self._metrics.dispatches.labels(self._job.model.name, self._cause).inc()
        self._sent_at = time.monotonic()
        return self._link.submit(self._job.submit())

    async def _ready_replica(self) -> ReplicaLink:
        replicas = self._job.model.replicas
        try:
            async with asyncio.timeout(self._max_waiting_s):
                while (link := self._choose()) is None:
                    if replicas.num_ready:
                        raise RequestError(
                            Reason.QUEUE_FULL,
                            "all replicas are full",
                            retry_after_s=_RETRY_AFTER_S,
                        )
                    await replicas.changed()
        except TimeoutError as error:
            raise RequestError(
                Reason.NO_REPLICA,
                f"no replica of {self._job.model.name} became ready in {self._max_waiting_s:g}s",
                retry_after_s=_RETRY_AFTER_S,
            ) from error
        return link

    def _choose(self) -> ReplicaLink | None:
        job = self._job
        return job.model.replicas.choose(job.route, self._lost, self._refused, self._cause)

    def _must_move(self, first: Event) -> bool:
        """Whether the replica has handed the request back untouched."""
        if not isinstance(first, internal.RequestEnd):
            return False
        match first.failed.cause:
            case internal.Failed.CAUSE_REFUSED:
                self._refused.add(self.replica)
                self._ticket = None
            case internal.Failed.CAUSE_CANCELLED:
                self._give_up_on_replica(f"replica {self.replica} is stopping")
            case _:
                return False
        return True

    def _give_up_on_replica(self, why: str) -> None:
        self._lost.append(self.replica)
        self._ticket = None
        if self._begun or len(self._lost) >= self._max_attempts:
            raise RequestError(Reason.REPLICA_LOST, why, retry_after_s=_RETRY_AFTER_S)
