"""A job's way to its tokens, over as many replicas as it takes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from trunkline.internal.v1 import replica_pb2 as internal

from cluster.errors import Reason, RequestError
from cluster.settings import RouterSettings
from router.alarm import Alarm
from router.fleet.ticket import ReplicaFaulty, ReplicaLost
from router.job import Job
from router.metrics import Metrics
from router.part import Leg, Part
from router.retry_budget import RetryBudget

_RETRY_AFTER_S = 1.0
_BUDGET_PAUSE_S = 0.1
_HEDGE = "hedge"
_NEVER = float("inf")

_REASONS = {
    internal.Failed.CAUSE_INVALID: Reason.INVALID_ARGUMENT,
    internal.Failed.CAUSE_DEADLINE: Reason.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True, slots=True)
class DispatchTools:
    """What the dispatches of one router share."""

    metrics: Metrics
    budget: RetryBudget
    settings: RouterSettings


class Dispatch:
    """Sends a job to a replica, and goes on at another one whatever becomes of the first.

    Every token comes once, in order. What has begun is continued after the tokens that have come,
    each sample by itself (`max_moves`); what has not is sent again whole (`max_attempts`). A
    replica that refuses a job is not asked again.
    """

    def __init__(self, job: Job, tools: DispatchTools, on_sent: Callable[[], None]) -> None:
        """`on_sent` is called whenever something of the job has been sent to a replica."""
        self._job = job
        self._metrics = tools.metrics
        self._budget = tools.budget
        self._settings = tools.settings
        self._on_sent = on_sent
        self._news = asyncio.Event()
        self._alarm = Alarm(self._news)
        self._token_ids: list[list[int]] = [[] for _ in range(job.n)]
        self._wanted = set(range(job.n))
        """Samples that have not ended."""
        self._running = set(range(job.n))
        """Those that have not ended in an engine, be they wanted or not."""
        self._parts = [Part(range(job.n), waiting_since=time.monotonic())]
        self._begun = False
        self._failure: RequestError | None = None
        self._replica = ""
        self._sent_at = 0.0
        tools.budget.earn()

    @property
    def replica(self) -> str:
        """The replica that was last given something of the job."""
        return self._replica

    @property
    def sent_at(self) -> float:
        """When it was sent to the replica that has begun it, on time.monotonic()."""
        return self._sent_at

    async def take(self) -> list[internal.SampleOutput]:
        """New tokens of samples that are wanted, at least one output.

        Raises RequestError (NO_REPLICA, QUEUE_FULL, REPLICA_LOST, DEADLINE_EXCEEDED, and what
        replicas find wrong with the job).
        """
        if self._alarm.is_set and all(part.legs for part in self._parts):
            # Hearing of a part puts off what is due to it, so the alarm is early at worst.
            await self._news.wait()
        while True:
            self._news.clear()
            now = time.monotonic()
            outputs = [o for part in tuple(self._parts) for o in self._receive(part, now)]
            if outputs and len(self._parts) == 1:
                return outputs  # Nothing is due to what has just been heard of.
            if self._failure is None:
                wake_at = min([self._tend(part, now) for part in list(self._parts)], default=_NEVER)
            if outputs:
                return outputs
            if self._failure is not None:
                raise self._failure
            if now >= self._job.deadline:
                elapsed_s = now - self._job.admitted_at
                raise RequestError(
                    Reason.DEADLINE_EXCEEDED, f"the deadline passed after {elapsed_s:.3f}s"
                )
            await self._wait(min(wake_at, self._job.deadline))

    def drop(self, index: int) -> None:
        """Want no more of a sample."""
        self._wanted.discard(index)
        for part in list(self._parts):
            if index in part.indices and self._wanted.isdisjoint(part.indices):
                self._end_part(part)

    def cancel(self) -> None:
        """Tell replicas that nobody waits any more; harmless after the end."""
        self._alarm.cancel()
        for part in list(self._parts):
            self._end_part(part)

    def _end_part(self, part: Part) -> None:
        self._parts.remove(part)
        if not self._running.isdisjoint(part.indices):
            for leg in part.legs:
                leg.ticket.cancel()

    async def _wait(self, until: float) -> None:
        """Return when there may be something to do, and `until` at the latest."""
        self._alarm.set(until)
        if all(part.legs for part in self._parts):
            await self._news.wait()
            return
        replicas = asyncio.ensure_future(self._job.model.replicas.changed())
        replicas.add_done_callback(self._note_change)
        try:
            await self._news.wait()
        finally:
            replicas.cancel()

    def _note_change(self, replicas: asyncio.Future[None]) -> None:
        if not replicas.cancelled():
            self._news.set()

    # What comes from replicas.

    def _receive(self, part: Part, now: float) -> list[internal.SampleOutput]:
        outputs: list[internal.SampleOutput] = []
        for leg in tuple(part.legs):
            if leg not in part.legs:  # another has just been quicker
                continue
            try:
                events = leg.ticket.take()
            except ReplicaLost as error:
                if isinstance(error, ReplicaFaulty):
                    leg.link.note_fault()
                self._lose(part, leg, f"{leg.link.member}: {error}", now)
                continue
            for event in events:
                if isinstance(event, internal.RequestEnd):
                    self._end_leg(part, leg, event, now)
                elif self._note(part, leg, event, now):
                    outputs.append(event)
        return outputs

    def _note(self, part: Part, leg: Leg, output: internal.SampleOutput, now: float) -> bool:
        """Take note of new tokens; whether they are wanted."""
        if len(part.legs) > 1 or not self._begun:
            self._begin(part, leg)
        part.heard_at, part.num_pauses = now, 0
        index = output.index
        if output.finish_reason:
            self._running.discard(index)
        if index not in self._wanted:
            return False
        self._token_ids[index].extend(output.token_ids)
        if output.finish_reason:
            self.drop(index)
        return True

    def _begin(self, part: Part, leg: Leg) -> None:
        """The first to answer has the job; where it was sent beside that, it is cancelled."""
        if not self._begun:
            self._begun = True
            self._alarm.cancel()  # From now on a halt is what is due.
        self._replica, self._sent_at = leg.link.member, leg.sent_at
        if leg.is_hedge:
            self._metrics.fleet.hedges_won.labels(self._job.model.name).inc()
        for other in part.legs:
            if other is not leg:
                other.ticket.cancel()
        part.legs = [leg]

    def _end_leg(self, part: Part, leg: Leg, end: internal.RequestEnd, now: float) -> None:
        if part not in self._parts:
            return
        member = leg.link.member
        if end.HasField("finished"):
            leg.link.note_fault()
            self._lose(part, leg, f"replica {member} ended unfinished samples", now)
            return
        match end.failed.cause:
            case internal.Failed.CAUSE_REFUSED:
                part.refused.add(member)
                part.legs.remove(leg)
            case internal.Failed.CAUSE_MOVED | internal.Failed.CAUSE_CANCELLED:
                self._lose(part, leg, f"replica {member} is stopping", now)
            case cause:
                if cause not in _REASONS:
                    leg.link.note_fault()
                self._failure = _error_of(end.failed)

    def _lose(self, part: Part, leg: Leg, why: str, now: float) -> None:
        """A replica does no more for a part: if no other does, it has to go elsewhere."""
        part.legs.remove(leg)
        part.lost.append(leg.link.member)
        if part.legs:
            return
        settings = self._settings
        part.num_moves += self._begun
        is_over = (
            part.num_moves > settings.max_moves
            if self._begun
            else len(part.lost) >= settings.max_attempts
        )
        if is_over:
            self._failure = _cannot(Reason.REPLICA_LOST, why)
            return
        part.is_retry, part.waiting_since = True, now
        part.pause(now, settings.retry_backoff_s)
        if self._begun:
            place = self._parts.index(part)
            self._parts[place : place + 1] = part.split(self._wanted)

    # What goes to replicas.

    def _tend(self, part: Part, now: float) -> float:
        """Do what is due for a part; returns when to look again."""
        if not part.legs:
            return self._try_to_send(part, now)
        settings = self._settings
        if self._begun:
            due = part.heard_at + settings.stall_s
            if now >= due:
                self._move_stalled(part, now)
                due = now + settings.stall_s
            return due
        if settings.hedge_after_s is None or part.is_hedged:
            return _NEVER
        due = part.heard_at + settings.hedge_after_s
        if now < due:
            return due
        self._hedge(part, now)
        return _NEVER

    def _try_to_send(self, part: Part, now: float) -> float:
        if now < part.not_before:
            return part.not_before
        if part.is_retry and not self._budget.spend():
            return self._wait_for_budget(part, now)
        part.is_retry = False
        if self._send(part, part.refused, part.cause, now):
            return self._tend(part, now)
        return self._wait_for_room(part, now)

    def _wait_for_budget(self, part: Part, now: float) -> float:
        if now >= part.waiting_since + self._settings.max_waiting_s:
            why = "its replica was lost, and there are too many retries to try again"
            self._failure = _cannot(Reason.REPLICA_LOST, why)
        part.not_before = now + _BUDGET_PAUSE_S
        return part.not_before

    def _wait_for_room(self, part: Part, now: float) -> float:
        model, waited_s = self._job.model, self._settings.max_waiting_s
        give_up_at = part.waiting_since + waited_s
        if not model.replicas.num_ready:
            if now >= give_up_at:
                why = f"no replica of {model.name} became ready in {waited_s:g}s"
                self._failure = _cannot(Reason.NO_REPLICA, why)
            return give_up_at
        if not self._begun or now >= give_up_at:
            self._failure = _cannot(Reason.QUEUE_FULL, "all replicas are full")
        # It has begun, so nobody sends it again for us: those that were full are asked once more.
        part.refused.clear()
        part.pause(now, self._settings.retry_backoff_s)
        return part.not_before

    def _hedge(self, part: Part, now: float) -> None:
        """Send what nobody has begun to a second replica, if there is one and it is affordable."""
        part.is_hedged = True
        members = {leg.link.member for leg in part.legs}
        if self._budget.spend():
            self._send(part, part.refused | members, _HEDGE, now)

    def _move_stalled(self, part: Part, now: float) -> None:
        """Take what has come to a halt to another replica, if there is one; else let it be."""
        [leg] = part.legs
        part.heard_at = now
        num_others = self._job.model.replicas.num_ready - leg.link.is_ready
        if num_others and part.num_moves < self._settings.max_moves:
            leg.ticket.cancel()
            leg.link.note_fault()
            why = f"replica {leg.link.member} has sent nothing for {self._settings.stall_s:g}s"
            self._lose(part, leg, why, now)

    def _send(self, part: Part, refused: set[str], cause: str, now: float) -> bool:
        """Send a part to a replica that has not refused it; whether there is one."""
        job = self._job
        token_ids = self._token_ids[part.indices[0]]
        route = job.route_of(part.indices, token_ids) if self._begun else job.route
        link = job.model.replicas.choose(route, part.lost, refused, cause)
        if link is None:
            return False
        self._metrics.fleet.dispatches.labels(job.model.name, cause).inc()
        submit = job.submit(part.indices, token_ids, is_moved=self._begun)
        part.legs.append(Leg(link, link.submit(submit, self._news), now, cause == _HEDGE))
        part.heard_at = now
        self._replica = link.member
        self._on_sent()
        return True


def _cannot(reason: Reason, why: str) -> RequestError:
    return RequestError(reason, why, retry_after_s=_RETRY_AFTER_S)


def _error_of(failed: internal.Failed) -> RequestError:
    reason = _REASONS.get(failed.cause, Reason.INTERNAL)
    return RequestError(
        reason,
        failed.message or f"the replica reports {reason}",
        field=failed.field,
        value=failed.value,
        accepted=failed.accepted,
    )
