"""Prompts go where they are answered first; affinity yields in milliseconds; no spiral, no herd."""

from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix.directory import PrefixDirectory
from router.policies.prefix import PrefixAware
from tests.router.policies.fleet_fixture import Replica, replicas, request, send

PREFIX = range(1024)


class Known:
    """A directory in which each test replica's word is complete."""

    def __init__(self, fleet: list[Replica]) -> None:
        self.directory = PrefixDirectory(65_536)
        for replica in fleet:
            self.directory.trust(replica.member)

    def hold(self, replica: Replica, token_ids: range) -> None:
        self.directory.store(replica.member, b"".join(request(token_ids).block_hashes))

    def lower(self, replica: Replica, token_ids: range, depth: int) -> None:
        """It holds all these, those after `depth` blocks in host memory only."""
        self.hold(replica, token_ids)
        hashes = request(token_ids).block_hashes
        self.directory.lower(replica.member, b"".join(hashes[depth:]))


def policy_of(known: Known, seed: int = 1) -> PrefixAware:
    return PrefixAware(Random(seed), known.directory)


@given(holder=st.integers(0, 7), seed=st.integers())
def test_an_idle_fleet_answers_where_the_prefix_is(holder: int, seed: int) -> None:
    fleet = replicas(*[5000.0] * 8)
    known = Known(fleet)
    known.hold(fleet[holder], PREFIX)
    choice = policy_of(known, seed).choose(request(range(1100)), fleet)
    assert choice.candidate is fleet[holder]
    assert (choice.basis, choice.uncached_tokens) == ("index", 1100 - 1024)
    assert choice.cached_tokens[holder] == 1024


@given(fetch=st.sampled_from([0.0, 10_000.0, 1e6]), depth=st.integers(0, 63))
def test_host_memory_is_nearly_as_good_as_the_device(fetch: float, depth: int) -> None:
    """Whoever has to fetch a prefix comes after who has it at hand, but before who computes it."""
    fleet = replicas(*[5000.0] * 3)
    for replica in fleet:
        replica.report(rate=5000.0, fetch=fetch)
    known = Known(fleet)
    known.lower(fleet[0], PREFIX, depth)
    known.hold(fleet[1], range(16 * depth))
    wanted = request(range(1100))
    assert policy_of(known).choose(wanted, fleet).candidate is fleet[0]
    known = Known(fleet)
    known.lower(fleet[0], PREFIX, depth)
    known.hold(fleet[2], PREFIX)
    choice = policy_of(known).choose(wanted, fleet)
    fetch_ms = choice.costs[0] - choice.costs[2]
    tokens = 1024 - 16 * depth
    assert choice.fetched_tokens == [tokens, 0, 0]
    assert choice.cached_tokens == [1024, 0, 1024]
    assert fetch_ms == pytest.approx(1e3 * tokens / fetch if fetch else 0.1 * tokens / 5)
    if fetch_ms > 0.1 * 2 * 76 / 5:  # costs of less than that are a tie
        assert choice.candidate is fleet[2]


@given(queued=st.integers(0, 20_000), cached=st.integers(0, 64))
def test_the_queue_ahead_is_weighed_against_the_prefill_saved_in_time(
    queued: int, cached: int
) -> None:
    fleet = replicas(5000.0, 5000.0)
    known = Known(fleet)
    known.hold(fleet[0], range(16 * cached))
    fleet[0].report(rate=5000.0, queued=queued)
    choice = policy_of(known).choose(request(PREFIX), fleet)
    saved = 2 * min(16 * cached, 1023)
    margin = 0.1 * 1024 + 1
    if queued < saved - margin:
        assert choice.candidate is fleet[0]
    if queued > saved + margin:
        assert choice.candidate is fleet[1]


def test_cost_grows_without_a_step_as_the_queue_does() -> None:
    fleet = replicas(5000.0, 5000.0)
    policy, costs = policy_of(Known(fleet)), list[float]()
    for queued in range(0, 50_000, 100):
        fleet[0].report(rate=5000.0, queued=queued)
        prompt = range(1000 * queued, 1000 * queued + 500)
        costs.append(policy.choose(request(prompt), fleet).costs[0])
    assert all(after - before == pytest.approx(20.0) for before, after in pairwise(costs))


def test_a_burst_with_one_prefix_converges_before_any_event() -> None:
    fleet = replicas(*[5000.0] * 8)
    policy = policy_of(Known(fleet))
    chosen = [send(policy, request([*PREFIX, i]), fleet).candidate.member for i in range(20)]
    assert len(set(chosen)) == 1


def test_a_hot_prefix_is_spread_once_its_replica_makes_it_wait() -> None:
    """All on one replica is the spiral: each next request would find the prefix there alone."""
    fleet = replicas(*[5000.0] * 4, decode=1000.0)
    policy = policy_of(Known(fleet))
    chosen = Counter(
        send(policy, request([*PREFIX, i]), fleet).candidate.member for i in range(400)
    )
    assert len(chosen) == 4
    assert max(chosen.values()) < 2 * min(chosen.values())


def test_prompts_that_nobody_holds_are_spread() -> None:
    fleet = replicas(*[5000.0] * 4)
    policy = policy_of(Known(fleet))
    chosen = Counter(
        send(policy, request(range(1000 * i, 1000 * i + 500)), fleet).candidate.member
        for i in range(40)
    )
    assert set(chosen.values()) == {10}


def test_single_prompts_on_an_idle_fleet_are_drawn_among_all_in_spite_of_noise_in_rates() -> None:
    fleet = replicas(5000.0, 5050.0, 4950.0, 5020.0)
    known = Known(fleet)
    chosen = {
        policy_of(known, seed).choose(request(range(seed, seed + 500)), fleet).candidate.member
        for seed in range(60)
    }
    assert len(chosen) == 4


def test_a_long_queue_elsewhere_does_not_break_affinity() -> None:
    fleet = replicas(*[5000.0] * 3)
    known = Known(fleet)
    known.hold(fleet[1], PREFIX)
    fleet[0].report(rate=5000.0, queued=10**6, running=60)
    assert policy_of(known).choose(request(PREFIX), fleet).candidate is fleet[1]


def test_work_is_counted_in_tokens_not_in_requests() -> None:
    fleet = replicas(5000.0, 5000.0)
    fleet[0].report(rate=5000.0, queued=100_000, running=1)
    fleet[1].report(rate=5000.0, queued=1_000, running=10)
    assert policy_of(Known(fleet)).choose(request(PREFIX), fleet).candidate is fleet[1]


def test_affinity_survives_when_every_queue_is_long() -> None:
    """Hits lost under load would make the load grow: the cache-miss spiral."""
    fleet = replicas(*[5000.0] * 4)
    known = Known(fleet)
    known.hold(fleet[2], PREFIX)
    for replica in fleet:
        replica.report(rate=5000.0, queued=500_000)
    for seed in range(20):
        assert policy_of(known, seed).choose(request(PREFIX), fleet).candidate is fleet[2]


def test_fast_replicas_get_as_much_more_as_they_are_faster() -> None:
    fleet = replicas(1000.0, 4000.0)
    policy = policy_of(Known(fleet))
    chosen = Counter(
        send(policy, request(range(1000 * i, 1000 * i + 500)), fleet).candidate.member
        for i in range(100)
    )
    assert chosen["replica-1@1"] == pytest.approx(80, abs=2)


@given(loads=st.lists(st.integers(0, 50), min_size=2, max_size=8), cached=st.integers(0, 60))
def test_without_rates_uncached_tokens_times_load_decide(loads: list[int], cached: int) -> None:
    fleet = replicas(*[0.0] * len(loads))
    known = Known(fleet)
    known.hold(fleet[0], range(16 * cached))
    for replica, running in zip(fleet, loads, strict=True):
        replica.report(running=running)
    choice = policy_of(known).choose(request(PREFIX), fleet)
    costs = [(1024 - (16 * cached if i == 0 else 0)) * (n + 1) for i, n in enumerate(loads)]
    assert list(choice.costs) == costs
    assert costs[fleet.index(choice.candidate)] == min(costs)


def test_without_the_index_the_own_memory_of_dispatches_serves() -> None:
    fleet = replicas(*[5000.0] * 8)
    policy = PrefixAware(Random(1), PrefixDirectory(64))
    first = send(policy, request(PREFIX), fleet)
    again = send(policy, request([*PREFIX, 1]), fleet)
    assert again.candidate is first.candidate
    assert (first.basis, again.basis) == ("consistent_hash", "dispatch_memory")


def test_without_index_and_memory_routers_agree_on_a_replica_by_the_first_blocks() -> None:
    fleet = replicas(*[5000.0] * 8)
    chosen = {
        PrefixAware(Random(seed), PrefixDirectory(64))
        .choose(request([*range(64), seed]), fleet)
        .candidate.member
        for seed in range(10)
    }
    assert len(chosen) == 1


def test_a_prompt_without_a_full_block_goes_to_the_least_loaded() -> None:
    fleet = replicas(*[0.0] * 3)
    for replica, running in zip(fleet, (2, 1, 3), strict=True):
        replica.report(running=running)
    choice = PrefixAware(Random(1), PrefixDirectory(64)).choose(request(range(15)), fleet)
    assert (choice.basis, choice.candidate) == ("least_loaded", fleet[1])


def test_a_replica_that_is_not_known_yet_is_judged_by_what_was_sent_there() -> None:
    fleet = replicas(5000.0, 5000.0)
    known = Known(fleet[:1])
    policy = policy_of(known)
    policy.choose(request(PREFIX), fleet[1:])
    choice = policy.choose(request(PREFIX), fleet)
    assert (choice.basis, choice.candidate) == ("index", fleet[1])


def test_a_lost_index_degrades_to_memory_and_comes_back() -> None:
    fleet = replicas(*[5000.0] * 4)
    known = Known(fleet)
    policy = policy_of(known)
    bases = [send(policy, request(PREFIX), fleet).basis]
    for replica in fleet:
        known.directory.doubt(replica.member)
    bases.append(send(policy, request(PREFIX), fleet).basis)
    bases.append(send(policy, request(range(5000, 6000)), fleet).basis)
    for replica in fleet:
        known.directory.trust(replica.member)
    bases.append(send(policy, request(PREFIX), fleet).basis)
    assert bases == ["index", "dispatch_memory", "consistent_hash", "index"]
