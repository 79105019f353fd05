"""What it costs a router to choose a replica, in its own process."""

import gc
from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter
from typing import TypeVar

from trunkline.internal.v1 import replica_pb2 as internal

from cluster.model_card import ModelCard
from cluster.prefix.directory import PrefixDirectory
from ops.bench.report import Row
from router.decisions import Decisions
from router.fleet.load_estimate import Booking, LoadEstimate
from router.fleet.prefill_rates import PrefillRates
from router.metrics import Metrics
from router.policies import Choice, Policy, RouteRequest
from router.policies.prefix import PrefixAware

T = TypeVar("T")

_NUM_REPLICAS = 64
_BLOCK_SIZE = 16
_CHOICES = 300
"""In one run."""
_INDEX_BLOCKS = 200_000
"""Of one replica's cache in the measured index; all are held by all replicas."""
_GOALS = {512: 60.0, 8192: 400.0}
"""Microseconds by length of prompt."""
_GOAL_BYTES = 120.0
_STEPS = ("all", "hash", "look up", "choose", "reserve")


def bench_router(runs: int, lengths: Sequence[int]) -> list[Row]:
    """Microseconds for a choice among 64 replicas, half of the prompt cached on some of them, and
    the index's bytes for each block that it knows."""
    rows = [row for length in lengths for row in _choice_rows(length, runs)]
    size = _row([_index_bytes()] * runs, "index of 64 replicas", "memory of a block", "bytes")
    return [*rows, size]


def _choice_rows(length: int, runs: int) -> list[Row]:
    bench = _Bench(length)
    found = [bench.run(seed) for seed in range(runs)]
    return [
        _row(
            [medians[step] for medians in found],
            f"{length} prompt tokens, {_NUM_REPLICAS} replicas",
            step,
            "us",
            _GOALS.get(length) if step == "all" else None,
        )
        for step in _STEPS
    ]


def _row(
    values: Sequence[float], work: str, metric: str, unit: str, limit: float | None = _GOAL_BYTES
) -> Row:
    return Row.over(
        values,
        bench="router",
        work=work,
        model="",
        engine="prefix",
        metric=metric,
        unit=unit,
        limit=limit,
    )


class _Bench:
    """Replicas under some load, of which every eighth holds the first half of all prompts."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._card = ModelCard(
            name="bench",
            fingerprint="0" * 32,
            max_model_len=2 * length,
            vocab_size=2**17,
            block_size=_BLOCK_SIZE,
            eos_token_ids=(),
            tokenizer_json="",
        )
        self._half = Random(0).choices(range(2**17), k=length // 2)
        self._prefixes = PrefixDirectory(2**20)
        held = b"".join(self._request("held", self._half).block_hashes)
        rates = PrefillRates()
        self._replicas = [_replica(number, rates) for number in range(_NUM_REPLICAS)]
        for number, replica in enumerate(self._replicas):
            self._prefixes.trust(replica.member)
            if number % 8 == 0:
                self._prefixes.store(replica.member, held)
        self._decisions = Decisions("bench", "prefix", Metrics())

    def run(self, seed: int) -> dict[str, float]:
        """The median of each step of so many choices, and of all of them together."""
        random, policy = Random(seed), PrefixAware(Random(seed), self._prefixes)
        prompts = [
            self._half + random.choices(range(2**17), k=self._length - len(self._half))
            for _ in range(_CHOICES)
        ]
        gc.collect()
        taken = [self._choose(policy, prompt) for prompt in prompts]
        return {
            step: 1e6 * sorted(times[index] for times in taken)[len(taken) // 2]
            for index, step in enumerate(_STEPS)
        }

    def _choose(self, policy: Policy, prompt: Sequence[int]) -> tuple[float, ...]:
        request = self._request("r", prompt)
        hashing, hashes = _timed(lambda: request.block_hashes)
        looking, _ = _timed(lambda: self._prefixes.held(hashes))
        choosing, choice = _timed(lambda: policy.choose(request, self._replicas))
        reserving, booking = _timed(lambda: self._reserve(request, choice))
        choice.candidate.release(booking)
        # The policy looks up once more what was looked up to measure it.
        return hashing + choosing + reserving, hashing, looking, choosing - looking, reserving

    def _reserve(self, request: RouteRequest, choice: Choice[LoadEstimate]) -> Booking:
        """As ReplicaSet.choose and ReplicaLink.reserve do."""
        self._decisions.record(request, "new", self._replicas, choice)
        return choice.candidate.book(request.n, choice.uncached_tokens)

    def _request(self, request_id: str, token_ids: Sequence[int]) -> RouteRequest:
        return RouteRequest(request_id=request_id, model=self._card, token_ids=token_ids)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    start = perf_counter()
    done = work()
    return perf_counter() - start, done


def _replica(number: int, rates: PrefillRates) -> LoadEstimate:
    replica = LoadEstimate(f"replica-{number}@1", rates)
    replica.report(
        internal.Load(
            running_sequences=number % 16,
            queued_prefill_tokens=100 * (number % 7),
            prefill_tokens_per_s=5000.0 + number,
            decode_tokens_per_s=1000.0,
            max_running_sequences=256,
        )
    )
    return replica


def _index_bytes() -> float:
    """Of the whole index, for each block in it, when all replicas hold the same."""
    directory, random = PrefixDirectory(_INDEX_BLOCKS), Random(0)
    hashes = random.randbytes(16 * _INDEX_BLOCKS)
    for number in range(_NUM_REPLICAS):
        directory.store(f"replica-{number}@1", hashes)
    return directory.nbytes / directory.num_blocks
