"""The replicas of one model."""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Any

import structlog

from cluster.prefix.directory import PrefixDirectory
from cluster.registry import ReplicaRecord
from router.decisions import Decisions
from router.fleet.breaker import BreakerState
from router.fleet.load_estimate import LoadEstimate
from router.fleet.prefill_rates import PrefillRates
from router.fleet.replica_link import ReplicaLink
from router.policies import Policy, RouteRequest
from router.policies.replica_load import cost_parts

log = structlog.get_logger(__name__)

LinkMaker = Callable[[ReplicaRecord, LoadEstimate, Callable[[], None]], ReplicaLink]
"""Makes the link to a replica; the third argument is its `on_change`."""


class ReplicaSet:
    """Holds a link to every replica that is registered or still answering requests."""

    def __init__(
        self,
        policy: Policy,
        make_link: LinkMaker,
        decisions: Decisions,
        prefixes: PrefixDirectory,
    ) -> None:
        self.prefixes = prefixes
        self._policy = policy
        self._make_link = make_link
        self._decisions = decisions
        self._rates = PrefillRates()
        self._links: dict[str, ReplicaLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._known_ready: list[LoadEstimate] | None = None

    @property
    def num_ready(self) -> int:
        """Replicas that take requests now."""
        return len(self._ready())

    @property
    def estimates(self) -> list[LoadEstimate]:
        """What each replica is believed to have to do."""
        return [link.estimate for link in self._links.values()]

    @property
    def room(self) -> float:
        """Sequences that may be sent until all replicas have enough to do."""
        return sum(estimate.room for estimate in self._ready())

    @property
    def room_to_run(self) -> float:
        """Of these, sequences that need not wait there."""
        return sum(estimate.room_to_run for estimate in self._ready())

    def soonest_s(self, request: RouteRequest) -> float:
        """When the request's first token is to be expected from whichever ready replica is first.

        0 where nothing is known of their rates; some must be ready.
        """
        held, block_size = self.prefixes.held(request.block_hashes), request.model.block_size

        def first_ms(estimate: LoadEstimate) -> float:
            cached = held.depths.get(estimate.member, 0) * block_size
            fetched = held.lowered.get(estimate.member, 0) * block_size
            uncached = max(request.num_prompt_tokens - cached, 1)
            parts = cost_parts(estimate.load, uncached, fetched)
            return parts.queue_ms + parts.prefill_ms + parts.fetch_ms + parts.decode_ms

        return 1e-3 * min(map(first_ms, self._ready()))

    def has_news(self, records: Iterable[ReplicaRecord]) -> bool:
        """Whether there is a replica among these that was not here before."""
        return any(record.member not in self._links for record in records)

    def follow(self, records: Iterable[ReplicaRecord]) -> None:
        """Open links to new replicas and close those to replicas that are gone.

        A replica that has left the registry gets no new requests, but keeps its link until it
        has answered the last one.
        """
        registered = {record.member: record for record in records}
        for member, link in list(self._links.items()):
            link.registered = member in registered
            if not link.registered and link.is_idle:
                del self._links[member]
                self._tasks.pop(member).cancel()
                self._rates.forget(member)
        for member, record in registered.items():
            if member not in self._links:
                estimate = LoadEstimate(member, self._rates)
                link = self._links[member] = self._make_link(record, estimate, self._announce)
                self._tasks[member] = asyncio.create_task(link.run(), name=f"link {member}")
                self._tasks[member].add_done_callback(_report_failure)
        self._announce()

    def choose(
        self, request: RouteRequest, avoid: Collection[str], refused: Collection[str], cause: str
    ) -> ReplicaLink | None:
        """A ready replica by the policy, or None if there is none.

        Those in `avoid` are taken only if there is no other, those in `refused` never. What the
        request will take is reserved there at once: the caller submits to it before anything else
        runs. `cause` is why a replica is wanted, for whoever asks later why this one.
        """
        candidates = self._ready()
        if refused:
            candidates = [estimate for estimate in candidates if estimate.member not in refused]
        if avoid:
            others = [estimate for estimate in candidates if estimate.member not in avoid]
            candidates = others or candidates
        if not candidates:
            return None
        choice = self._policy.choose(request, candidates)
        self._decisions.record(request, cause, candidates, choice)
        link = self._links[choice.candidate.member]
        num_tokens = request.num_prompt_tokens if request.computes_all else choice.uncached_tokens
        link.reserve(request.n, num_tokens)
        return link

    def changed(self) -> Coroutine[Any, Any, None]:
        """Wait until replicas have come, gone, changed in readiness or told their load."""
        return _until_set(self._changed)

    def num_in_state(self, state: BreakerState) -> int:
        """Registered replicas whose breaker is in this state."""
        return sum(link.breaker.state is state for link in self._links.values() if link.registered)

    async def close(self) -> None:
        """Close all links; what is under way on them is lost."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _ready(self) -> list[LoadEstimate]:
        """Those of the replicas that take requests now; not to be changed."""
        if self._known_ready is None:
            self._known_ready = [link.estimate for link in self._links.values() if link.is_ready]
        return self._known_ready

    def _announce(self) -> None:
        self._known_ready = None
        self._changed.set()
        self._changed = asyncio.Event()


async def _until_set(event: asyncio.Event) -> None:
    await event.wait()


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("link failed", task=task.get_name(), exc_info=error)
