"""Sessions and adapters stay together as long as that makes no replica hot."""

from collections import Counter
from math import ceil
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from router.policies import Policy
from router.policies.adapter import AdapterAffinity
from router.policies.dispatch_memory import DispatchMemory
from router.policies.hash_ring import HashRing
from router.policies.session import Session
from tests.router.policies.fleet_fixture import Replica, replicas, request, send

NAMES = st.text(st.characters(codec="ascii"), min_size=1, max_size=20)


def member(policy: Policy, fleet: list[Replica], session: str) -> str:
    return policy.choose(request(range(20), session_id=session), fleet).candidate.member


@given(session=NAMES, num_replicas=st.integers(1, 8))
def test_routers_send_a_session_to_one_replica_without_a_word(
    session: str, num_replicas: int
) -> None:
    fleet = replicas(*[0.0] * num_replicas)
    assert len({member(Session(Random(seed)), fleet, session) for seed in range(5)}) == 1


@given(sequences=st.lists(st.integers(0, 30), max_size=80), num_replicas=st.integers(1, 8))
def test_no_replica_gets_more_than_its_share(sequences: list[int], num_replicas: int) -> None:
    policy, fleet = Session(Random(1)), replicas(*[0.0] * num_replicas)
    for number in sequences:
        total = sum(replica.load.pending_sequences for replica in fleet)
        choice = send(policy, request([1], session_id=f"s{number}"), fleet)
        assert choice.candidate.load.pending_sequences <= ceil(1.25 * (total + 1) / num_replicas)


def test_a_session_that_has_spilled_stays_where_it_went() -> None:
    policy, fleet = Session(Random(1)), replicas(*[0.0] * 4)
    home = member(policy, fleet, "s")
    busy = next(replica for replica in fleet if replica.member == home)
    busy.report(running=100)
    refuge = member(policy, fleet, "s")
    busy.report(running=0)
    assert refuge != home
    assert [member(policy, fleet, "s") for _ in range(3)] == [refuge] * 3


def test_a_session_whose_refuge_is_gone_finds_another() -> None:
    policy, fleet = Session(Random(1)), replicas(*[0.0] * 4)
    home = member(policy, fleet, "s")
    next(replica for replica in fleet if replica.member == home).report(running=100)
    refuge = member(policy, fleet, "s")
    left = [replica for replica in fleet if replica.member != refuge]
    assert member(policy, left, "s") in {replica.member for replica in left}


@given(gone=st.integers(0, 7))
def test_a_replica_that_goes_moves_only_its_own_keys(gone: int) -> None:
    fleet, ring = replicas(*[0.0] * 8), HashRing()
    keys = [str(number).encode() for number in range(200)]
    before = {key: ring.choose(key, fleet).member for key in keys}
    left = [replica for replica in fleet if replica is not fleet[gone]]
    after = {key: ring.choose(key, left).member for key in keys}
    moved = {key for key in keys if before[key] != after[key]}
    assert moved == {key for key in keys if before[key] == fleet[gone].member}


def test_keys_are_spread_over_the_ring() -> None:
    fleet, ring = replicas(*[0.0] * 8), HashRing()
    shares = Counter(ring.choose(str(n).encode(), fleet).member for n in range(2000))
    assert len(shares) == 8
    assert max(shares.values()) < 2 * 2000 / 8


def test_an_adapter_stays_with_replicas_that_have_it_until_they_are_busy() -> None:
    policy, fleet = AdapterAffinity(Random(1)), replicas(*[0.0] * 4)
    wanted = request(range(20), adapter="french")
    first = policy.choose(wanted, fleet)
    assert all(policy.choose(wanted, fleet).candidate is first.candidate for _ in range(5))
    first.candidate.report(running=50)
    second = policy.choose(wanted, fleet)
    assert second.candidate is not first.candidate
    first.candidate.report(running=0)
    chosen = {policy.choose(wanted, fleet).candidate.member for _ in range(50)}
    assert chosen == {first.candidate.member, second.candidate.member}


def test_requests_without_adapter_or_session_go_to_the_least_loaded() -> None:
    fleet = replicas(0.0, 0.0)
    fleet[0].report(running=1)
    for policy in (AdapterAffinity(Random(1)), Session(Random(1))):
        choice = policy.choose(request(range(20)), fleet)
        assert (choice.basis, choice.candidate) == ("least_loaded", fleet[1])


@given(depth=st.integers(1, 300), sent=st.integers(1, 300))
def test_memory_never_claims_more_than_was_sent_and_at_least_two_thirds(
    depth: int, sent: int
) -> None:
    memory, hashes = DispatchMemory(), [number.to_bytes(16) for number in range(300)]
    memory.note(hashes[:sent], "a")
    remembered, shared = memory.depths(hashes[:depth]).get("a", 0), min(depth, sent)
    assert 2 * shared / 3 <= remembered <= shared


@given(prompts=st.lists(st.integers(1, 100), max_size=50))
def test_memory_is_bounded(prompts: list[int]) -> None:
    memory = DispatchMemory(max_blocks=32)
    for number, length in enumerate(prompts):
        memory.note([bytes([number, depth]) for depth in range(length)], "a")
    assert len(memory) <= 32
