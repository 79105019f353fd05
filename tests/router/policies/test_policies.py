"""What each policy promises, whatever replicas there are and however busy they are."""

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix.directory import PrefixDirectory
from cluster.settings import RouterSettings
from router.policies import POLICIES, ReplicaLoad, RouteRequest
from router.policies.least_loaded import LeastLoaded
from router.policies.power_of_two import PowerOfTwo
from router.policies.round_robin import RoundRobin
from tests.router.policies.seen import Seen
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

REQUEST = RouteRequest(
    request_id="r", model=model_card(byte_level_tokenizer()), token_ids=range(100)
)


def pending(candidate: Seen) -> int:
    return candidate.load.pending_sequences


LOADS = st.lists(st.integers(0, 100), min_size=1, max_size=12)


def replicas(loads: Sequence[int]) -> list[Seen]:
    return [
        Seen(f"replica-{index}@1", ReplicaLoad(pending_sequences=load))
        for index, load in enumerate(loads)
    ]


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(loads=LOADS, seed=st.integers())
def test_any_policy_chooses_one_of_the_candidates(name: str, loads: list[int], seed: int) -> None:
    candidates = replicas(loads)
    policy = POLICIES[name](Random(seed), PrefixDirectory(64))
    assert all(policy.choose(REQUEST, candidates).candidate in candidates for _ in range(5))


def test_the_settings_name_exactly_the_policies_there_are() -> None:
    assert set(get_args(RouterSettings.model_fields["policy"].annotation)) == set(POLICIES)


@given(num_replicas=st.integers(1, 12), rounds=st.integers(1, 5), random=st.randoms())
def test_round_robin_is_fair_in_any_order_of_candidates(
    num_replicas: int, rounds: int, random: Random
) -> None:
    policy, candidates, counts = RoundRobin(), replicas([0] * num_replicas), Counter[str]()
    for _ in range(rounds * num_replicas):
        random.shuffle(candidates)
        counts[policy.choose(REQUEST, candidates).candidate.member] += 1
    assert set(counts.values()) == {rounds}


@given(num_replicas=st.integers(2, 12), gone=st.integers(0, 11), start=st.integers(0, 11))
def test_round_robin_stays_fair_when_a_replica_goes(
    num_replicas: int, gone: int, start: int
) -> None:
    policy, candidates = RoundRobin(), replicas([0] * num_replicas)
    for _ in range(start):
        policy.choose(REQUEST, candidates)
    del candidates[gone % num_replicas]
    counts = Counter(
        policy.choose(REQUEST, candidates).candidate.member for _ in range(3 * len(candidates))
    )
    assert set(counts.values()) == {3}


@given(loads=LOADS, seed=st.integers())
def test_least_loaded_takes_a_minimum(loads: list[int], seed: int) -> None:
    chosen = LeastLoaded(Random(seed)).choose(REQUEST, replicas(loads)).candidate
    assert chosen.load.pending_sequences == min(loads)


def test_least_loaded_draws_among_equals() -> None:
    policy, candidates = LeastLoaded(Random(1)), replicas([3, 1, 1, 1])
    chosen = {policy.choose(REQUEST, candidates).candidate.member for _ in range(100)}
    assert chosen == {"replica-1@1", "replica-2@1", "replica-3@1"}


@given(
    loads=st.lists(st.integers(0, 100), min_size=2, max_size=12, unique=True), seed=st.integers()
)
def test_power_of_two_never_takes_the_worst(loads: list[int], seed: int) -> None:
    policy = PowerOfTwo(Random(seed))
    chosen = {pending(policy.choose(REQUEST, replicas(loads)).candidate) for _ in range(20)}
    assert max(loads) not in chosen


@given(num_replicas=st.integers(1, 8), num_requests=st.integers(0, 100), seed=st.integers())
def test_least_loaded_with_booking_never_drifts_apart(
    num_replicas: int, num_requests: int, seed: int
) -> None:
    policy, candidates = LeastLoaded(Random(seed)), replicas([0] * num_replicas)
    for _ in range(num_requests):
        chosen = candidates.index(policy.choose(REQUEST, candidates).candidate)
        load = pending(candidates[chosen])
        candidates[chosen] = Seen(candidates[chosen].member, ReplicaLoad(load + 1))
    loads = [pending(candidate) for candidate in candidates]
    assert max(loads) - min(loads) <= 1
