"""Why requests went where they went."""

import re
import time
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from trunkline.v1 import admin_pb2 as admin

from router.metrics import Metrics
from router.policies import C, Candidate, Choice, ReplicaLoad, RouteRequest
from router.policies.replica_load import cost_parts

_CAPACITY = 4096
_OPENAI_PREFIX = re.compile("^(chat)?cmpl-")


class Decision(NamedTuple):
    """One choice of a replica."""

    request_id: str
    model: str
    time_s: float
    """Since 1970."""
    cause: str
    num_prompt_tokens: int
    candidates: Sequence[Candidate]
    loads: Sequence[ReplicaLoad]
    """What each candidate had to do then."""
    choice: Choice[Any]


class Decisions:
    """The last choices of one router, as many as a few minutes bring."""

    def __init__(self, router_id: str, policy: str, metrics: Metrics) -> None:
        self._router_id = router_id
        self._policy = policy
        made = metrics.fleet.routing_decisions
        self._made = lru_cache(lambda model, basis: made.labels(model, policy, basis))
        self._ring = deque[Decision](maxlen=_CAPACITY)

    def record(
        self, request: RouteRequest, cause: str, candidates: Sequence[C], choice: Choice[C]
    ) -> None:
        """Count and remember a choice; to be called before the request is booked."""
        self._made(request.model.name, choice.basis).inc()
        self._ring.append(
            Decision(
                request.request_id,
                request.model.name,
                time.time(),
                cause,
                request.num_prompt_tokens,
                candidates,
                [candidate.load for candidate in candidates],
                choice,
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
        choice = decision.choice
        message = admin.Decision(
            request_id=decision.request_id,
            router_id=self._router_id,
            model=decision.model,
            policy=self._policy,
            basis=choice.basis,
            cause=decision.cause,
            prompt_tokens=decision.num_prompt_tokens,
            chosen=choice.candidate.member,
            candidates=[_candidate(decision, i) for i in range(len(decision.candidates))],
        )
        message.time.FromMicroseconds(int(decision.time_s * 1e6))
        return message


def _candidate(decision: Decision, index: int) -> admin.CandidateCost:
    load, choice = decision.loads[index], decision.choice
    cached_tokens = choice.cached_tokens[index] if choice.cached_tokens else 0
    fetched_tokens = choice.fetched_tokens[index] if choice.fetched_tokens else 0
    message = admin.CandidateCost(
        replica=decision.candidates[index].member,
        cached_tokens=cached_tokens - fetched_tokens,
        fetchable_tokens=fetched_tokens,
        queued_prefill_tokens=load.queued_prefill_tokens,
        pending_sequences=load.pending_sequences,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
    )
    if choice.costs:
        uncached_tokens = max(decision.num_prompt_tokens - cached_tokens, 1)
        parts = cost_parts(load, uncached_tokens, fetched_tokens)
        message.queue_ms, message.prefill_ms = parts.queue_ms, parts.prefill_ms
        message.fetch_ms, message.decode_ms = parts.fetch_ms, parts.decode_ms
        message.work_ms, message.total_ms = parts.work_ms, choice.costs[index]
    return message
