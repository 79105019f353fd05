"""What it costs a router to choose a replica, in its own process."""

import gc
from array import array
from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter
from typing import TypeVar

from trunkline.internal.v1 import replica_pb2 as internal

from cluster.model_card import ModelCard
from cluster.prefix.directory import Held, PrefixDirectory
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
    """Microseconds for a choice among 64 replicas, half of the prompt cached on some of them or
    nothing anywhere, and the index's bytes for each block that it knows."""
    works = [(length, num_cached) for length in lengths for num_cached in (length // 2, 0)]
    rows = [row for length, num_cached in works for row in _choice_rows(length, num_cached, runs)]
    size = _row([_index_bytes()] * runs, "index of 64 replicas", "memory of a block", "bytes")
    return [*rows, size]


def _choice_rows(length: int, num_cached: int, runs: int) -> list[Row]:
    bench = _Bench(length, num_cached)
    found = [bench.run(seed) for seed in range(runs)]
    return [
        _row(
            [medians[step] for medians in found],
            f"{length} prompt tokens, {num_cached} cached",
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
    """Replicas under some load, of which every eighth holds so many first tokens of all prompts."""

    def __init__(self, length: int, num_cached: int) -> None:
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
        self._cached = Random(0).choices(range(2**17), k=num_cached)
        self._prefixes = _TimedDirectory(2**20)
        held = b"".join(self._request(self._cached).block_hashes)
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
        num_new = self._length - len(self._cached)
        prompts = [
            array("I", self._cached + random.choices(range(2**17), k=num_new))
            for _ in range(_CHOICES)
        ]
        gc.collect()
        taken = [self._choose(policy, prompt) for prompt in prompts]
        return {
            step: 1e6 * sorted(times[index] for times in taken)[len(taken) // 2]
            for index, step in enumerate(_STEPS)
        }

    def _choose(self, policy: Policy, prompt: Sequence[int]) -> tuple[float, ...]:
        # Made just before, as from a message.
        request = self._request(list(prompt))
        hashing, _ = _timed(lambda: request.block_hashes)
        choosing, choice = _timed(lambda: policy.choose(request, self._replicas))
        reserving, booking = _timed(lambda: self._reserve(request, choice))
        choice.candidate.release(booking)
        looking = self._prefixes.looking
        return hashing + choosing + reserving, hashing, looking, choosing - looking, reserving

    def _reserve(self, request: RouteRequest, choice: Choice[LoadEstimate]) -> Booking:
        """As ReplicaSet.choose and ReplicaLink.reserve do."""
        self._decisions.record(request, "new", self._replicas, choice)
        return choice.candidate.book(request.n, choice.uncached_tokens)

    def _request(self, token_ids: Sequence[int]) -> RouteRequest:
        return RouteRequest(request_id="r", model=self._card, token_ids=token_ids)


class _TimedDirectory(PrefixDirectory):
    """Knows how long the last look took, hashing what was asked for included."""

    looking = 0.0

    def held(self, hashes: Sequence[bytes]) -> Held:
        self.looking, held = _timed(lambda: super(_TimedDirectory, self).held(hashes))
        return held


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
