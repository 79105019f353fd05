"""A policy that knows all: what replicas really hold, and what is really queued there."""

from collections.abc import Mapping, Sequence
from random import Random

from ops.simulate.engine import SimulatedEngine
from router.policies import C, Choice, RouteRequest


class Oracle:
    """Takes the replica that will answer first, with what that costs others, as `prefix` does; but
    by the engines' own state at this moment, which no router can have.
    """

    def __init__(self, random: Random, engines: Mapping[str, SimulatedEngine]) -> None:
        self._random = random
        self._engines = engines

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """A candidate of least cost; among ties one is drawn."""
        total, size = request.num_prompt_tokens, request.model.block_size
        usable = request.block_hashes[: (total - 1) // size]
        costs = [self._engines[c.member].cost(total, usable) for c in candidates]
        least = min(cost.total_s for cost in costs)
        best = self._random.choice([i for i, cost in enumerate(costs) if cost.total_s == least])
        return Choice(candidates[best], "oracle", total - costs[best].cached_tokens)
