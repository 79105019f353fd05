"""Why requests went where they went."""

import re
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from trunkline.v1 import admin_pb2 as admin

from router.metrics import Metrics
from router.policies import C, Choice, ReplicaLoad, RouteRequest
from router.policies.replica_load import cost_parts

_CAPACITY = 4096
_OPENAI_PREFIX = re.compile("^(chat)?cmpl-")


class Decision(NamedTuple):
    """One choice of a replica; candidates' values are in the same order everywhere."""

    request_id: str
    model: str
    time_s: float
    """Since 1970."""
    cause: str
    basis: str
    num_prompt_tokens: int
    chosen: str
    members: Sequence[str]
    loads: Sequence[ReplicaLoad]
    cached_tokens: Sequence[int]
    costs: Sequence[float]
    fetched_tokens: Sequence[int]


class Decisions:
    """The last choices of one router, as many as a few minutes bring."""

    def __init__(self, router_id: str, policy: str, metrics: Metrics) -> None:
        self._router_id = router_id
        self._policy = policy
        self._metrics = metrics
        self._ring = deque[Decision](maxlen=_CAPACITY)

    def record(
        self, request: RouteRequest, cause: str, candidates: Sequence[C], choice: Choice[C]
    ) -> None:
        """Count and remember a choice; to be called before the request is booked."""
        metrics = self._metrics.fleet
        metrics.routing_decisions.labels(request.model.name, self._policy, choice.basis).inc()
        self._ring.append(
            Decision(
                request.request_id,
                request.model.name,
                time.time(),
                cause,
                choice.basis,
                request.num_prompt_tokens,
                choice.candidate.member,
                [candidate.member for candidate in candidates],
                [candidate.load for candidate in candidates],
                choice.cached_tokens,
                choice.costs,
                choice.fetched_tokens,
            )
        )

    def of_request(self, request_id: str) -> list[admin.Decision]:
        """All choices remembered for a request, oldest first.

        OpenAI's dialect puts a word before the id, and a number after it for each prompt.
        """
        name = _OPENAI_PREFIX.sub("", request_id)
        return [
            self._message(decision)
            for decision in self._ring
            if decision.request_id in (request_id, name)
            or decision.request_id.rpartition(".")[0] == name
        ]

    def _message(self, decision: Decision) -> admin.Decision:
        message = admin.Decision(
            request_id=decision.request_id,
            router_id=self._router_id,
            model=decision.model,
            policy=self._policy,
            basis=decision.basis,
            cause=decision.cause,
            prompt_tokens=decision.num_prompt_tokens,
            chosen=decision.chosen,
            candidates=[_candidate(decision, i) for i in range(len(decision.members))],
        )
        message.time.FromMicroseconds(int(decision.time_s * 1e6))
        return message


def _candidate(decision: Decision, index: int) -> admin.CandidateCost:
    load = decision.loads[index]
    cached_tokens = decision.cached_tokens[index] if decision.cached_tokens else 0
    fetched_tokens = decision.fetched_tokens[index] if decision.fetched_tokens else 0
    message = admin.CandidateCost(
        replica=decision.members[index],
        cached_tokens=cached_tokens - fetched_tokens,
        fetchable_tokens=fetched_tokens,
        queued_prefill_tokens=load.queued_prefill_tokens,
        pending_sequences=load.pending_sequences,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
    )
    if decision.costs:
        uncached_tokens = max(decision.num_prompt_tokens - cached_tokens, 1)
        parts = cost_parts(load, uncached_tokens, fetched_tokens)
        message.queue_ms, message.prefill_ms = parts.queue_ms, parts.prefill_ms
        message.fetch_ms, message.decode_ms = parts.fetch_ms, parts.decode_ms
        message.work_ms, message.total_ms = parts.work_ms, decision.costs[index]
    return message
