"""The replica that will answer first, which is usually the one that holds the prompt's prefix."""

from collections.abc import Mapping, Sequence, Set
from random import Random
from typing import Protocol

from cluster.prefix.directory import Held
from router.policies.dispatch_memory import DispatchMemory
from router.policies.hash_ring import HashRing
from router.policies.policy import C, Choice
from router.policies.route_request import RouteRequest

_KEY_BLOCKS = 4
"""Of a prompt's first blocks, as many as name it where nothing is known of it."""
_PRECISION = 0.05
"""By which learned rates of equal machines differ: what costs no more than that is a tie."""

_NOTHING: Mapping[str, int] = {}
_NOWHERE = Held(_NOTHING, _NOTHING)


class Prefixes(Protocol):
    """Which replica holds how much of a prompt (cluster.prefix.directory)."""

    def held(self, hashes: Sequence[bytes]) -> Held:
        """How many of the first of these blocks each replica holds, and where."""

    def expect(self, hashes: Sequence[bytes], member: str, depth: int | None) -> None:
        """The replica was sent a prompt with these blocks, of which it holds the first `depth`; if
        that is not told, by what is known."""

    @property
    def known(self) -> Set[str]:
        """The replicas of which all is known that they hold."""


class PrefixAware:
    """Takes the least cost in milliseconds: predicted time to first token, and work for others.

    Where a prompt's blocks lie is known, in this order, by the index of what replicas hold, by
    the memory of what was sent where, or not at all: then prompts that begin alike go to one
    replica by bounded consistent hashing, and those too short for a block to the least loaded.
    """

    def __init__(self, random: Random, prefixes: Prefixes) -> None:
        self._random = random
        self._prefixes = prefixes
        self._memory = DispatchMemory()
        self._ring = HashRing()

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """The candidate of least cost; among ties one is drawn."""
        hashes = request.block_hashes
        basis, held = self._whereabouts(hashes, candidates)
        if basis == "consistent_hash":
            key = hashes[min(len(hashes), _KEY_BLOCKS) - 1]
            chosen = self._ring.choose(key, candidates)
            choice = Choice(chosen, basis, request.num_prompt_tokens)
        else:
            choice = self._cheapest(request, candidates, held, basis)
        if hashes:
            member = choice.candidate.member
            self._memory.note(hashes, member)
            depth = held.depths.get(member, 0) if basis == "index" else None
            self._prefixes.expect(hashes, member, depth)
        return choice

    def _whereabouts(self, hashes: Sequence[bytes], candidates: Sequence[C]) -> tuple[str, Held]:
        """What to go by, and how many of the blocks candidates are believed to hold."""
        if not hashes:
            return "least_loaded", _NOWHERE
        known, held = self._prefixes.known, self._prefixes.held(hashes)
        unknown = {member for c in candidates if (member := c.member) not in known}
        if not unknown:
            return "index", held
        sent = {m: d for m, d in self._memory.depths(hashes).items() if m in unknown}
        depths = dict(held.depths)
        for member, depth in sent.items():
            depths[member] = max(depth, depths.get(member, 0))
        if len(unknown) < len(candidates):
            return "index", Held(depths, held.lowered)
        # Of a replica that is not known, the directory may say what is no more.
        return ("dispatch_memory", Held(sent, _NOTHING)) if sent else ("consistent_hash", _NOWHERE)

    def _cheapest(
        self, request: RouteRequest, candidates: Sequence[C], held: Held, basis: str
    ) -> Choice[C]:
        total, size = request.num_prompt_tokens, request.model.block_size
        loads = [candidate.load for candidate in candidates]
        costs = [load.base_ms + load.token_ms * total for load in loads]
        cached, fetched = [0] * len(costs), [0] * len(costs) if held.lowered else []
        for index, candidate in enumerate(candidates) if held.depths else ():
            if depth := held.depths.get(candidate.member):
                load, tokens = loads[index], size * depth
                cached[index] = tokens
                costs[index] = load.base_ms + load.token_ms * _uncached(total, tokens)
                if lowered := held.lowered.get(candidate.member):
                    fetched[index] = size * lowered
                    costs[index] += load.fetch_token_ms * fetched[index]
        if not (least := min(costs)):
            # The rate of some is not known.
            costs = [
                _uncached(total, tokens) * (load.pending_sequences + 1.0)
                for load, tokens in zip(loads, cached, strict=True)
            ]
            least = min(costs)
        best = costs.index(least)
        tie = least + _PRECISION * loads[best].token_ms * _uncached(total, cached[best])
        ties = [index for index, cost in enumerate(costs) if cost <= tie]
        if len(ties) > 1:
            best = self._random.choice(ties)
        uncached = _uncached(total, cached[best])
        return Choice(candidates[best], basis, uncached, cached, costs, fetched)


def _uncached(total: int, cached: int) -> int:
    """Prompt tokens to compute: one always is, that which the first answer follows."""
    return total - cached or 1
