"""Requests for an adapter to replicas that have loaded it."""

from collections import OrderedDict
from collections.abc import Sequence
from random import Random

from router.policies.hash_ring import load_bound
from router.policies.least_loaded import LeastLoaded
from router.policies.policy import C, Choice
from router.policies.route_request import RouteRequest

_MAX_ADAPTERS = 4096
_MAX_HOLDERS = 64
"""Replicas remembered for one adapter, the latest ones."""


class AdapterAffinity:
    """The least loaded of the replicas that were sent the adapter before; when each of them has
    more than 1.25 times the mean to do, the least loaded of all has to load it too.
    """

    def __init__(self, random: Random) -> None:
        self._least_loaded = LeastLoaded(random)
        self._holders = OrderedDict[str, OrderedDict[str, None]]()

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """A replica with the adapter, if one has room."""
        if not request.adapter:
            return self._least_loaded.choose(request, candidates)
        holders, bound = self._holders.get(request.adapter, ()), load_bound(candidates)
        near = [c for c in candidates if c.member in holders and c.load.pending_sequences < bound]
        choice = self._least_loaded.choose(request, near or candidates)
        self._note(request.adapter, choice.candidate.member)
        return choice._replace(basis="adapter") if near else choice

    def _note(self, adapter: str, member: str) -> None:
        holders = self._holders.setdefault(adapter, OrderedDict())
        holders[member] = None
        holders.move_to_end(member)
        self._holders.move_to_end(adapter)
        if len(holders) > _MAX_HOLDERS:
            holders.popitem(last=False)
        if len(self._holders) > _MAX_ADAPTERS:
            self._holders.popitem(last=False)
