"""A router in virtual time: its policy, index and estimates are the real ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

from trunkline.internal.v1 import replica_pb2 as internal

from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.events import CacheChange, CacheEvent, joined
from cluster.reservations import Reserved
from ops.simulate.virtual_time import VirtualTime
from router.fleet.load_estimate import Booking, LoadEstimate
from router.fleet.prefill_rates import PrefillRates
from router.policies import Choice, Policy, Prefixes, ReplicaLoad, RouteRequest


class SimulatedReplica:
    """A replica as one router sees it."""

    def __init__(self, member: str, estimate: LoadEstimate) -> None:
        self.member = member
        self.estimate = estimate

    @property
    def load(self) -> ReplicaLoad:
        """What it is believed to have to do."""
        return self.estimate.load


class SimulatedRouter:
    """Chooses replicas as router.fleet.replica_set does, by what it has heard of them."""

    def __init__(
        self,
        time: VirtualTime,
        members: Sequence[str],
        max_blocks: int,
        make_policy: Callable[[Random, Prefixes], Policy],
        random: Random,
    ) -> None:
        rates = PrefillRates(time.now)
        self.replicas = [
            SimulatedReplica(member, LoadEstimate(member, rates, time.now)) for member in members
        ]
        self._by_member = {replica.member: replica for replica in self.replicas}
        self._directory = PrefixDirectory(max_blocks, time.now)
        for member in members:
            self._directory.trust(member)
        self._policy = make_policy(random, self._directory)

    def choose(self, request: RouteRequest) -> tuple[Choice[SimulatedReplica], Booking]:
        """A replica by the policy, and what was booked there."""
        choice = self._policy.choose(request, self.replicas)
        booking = choice.candidate.estimate.book(request.n, choice.uncached_tokens)
        return choice, booking

    def hear_load(self, member: str, load: internal.Load) -> None:
        """Take in a replica's report."""
        self._by_member[member].estimate.report(load)

    def hear_events(self, member: str, events: Iterable[CacheEvent]) -> None:
        """Take in what has become of a replica's cache."""
        for change, hashes in events:
            match change:
                case CacheChange.STORED:
                    self._directory.store(member, joined(hashes))
                case CacheChange.REMOVED:
                    self._directory.remove(member, joined(hashes))
                case CacheChange.CLEARED:
                    self._directory.clear(member)

    @property
    def unreported(self) -> Mapping[str, Reserved]:
        """What it tells other routers, as router.fleet.shared_load does."""
        estimates = {replica.member: replica.estimate for replica in self.replicas}
        return {m: e.unreported for m, e in estimates.items() if e.unreported != Reserved()}

    def hear_peers(self, others: Sequence[Mapping[str, Reserved]]) -> None:
        """Take in what other routers tell."""
        for replica in self.replicas:
            told = [other[replica.member] for other in others if replica.member in other]
            replica.estimate.share(
                Reserved(sum(t.sequences for t in told), sum(t.prefill_tokens for t in told))
            )
