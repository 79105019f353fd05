"""Routers that share what they have sent choose like one router does."""

from collections import Counter as Count
from pathlib import Path
from random import Random

import pytest
from prometheus_client import CollectorRegistry, Counter
from redis.asyncio import Redis

from cluster.prefix.directory import PrefixDirectory
from cluster.reservations import Reservations, Reserved
from router.fleet.shared_load import SharedLoad
from router.policies import POLICIES, Policy
from tests.cluster.redis_fixture import running_redis
from tests.router.policies.fleet_fixture import Replica, replicas, request, send

RATES = (1000.0, 2000.0, 4000.0, 4000.0)


class Peer:
    """One of several routers, with its own links to the same replicas."""

    def __init__(self, redis: Redis, namespace: str, number: int, policy: str) -> None:
        self.fleet: list[Replica] = replicas(*RATES)
        self.policy: Policy = POLICIES[policy](Random(number), PrefixDirectory(64))
        self.metrics = CollectorRegistry()
        self.shared = SharedLoad(
            Reservations(redis, namespace, f"router-{number}"),
            lambda: [replica.estimate for replica in self.fleet],
            Counter("failures", "", registry=self.metrics),
        )

    def loads(self) -> list[int]:
        """Sequences that it believes each replica has."""
        return [replica.load.pending_sequences for replica in self.fleet]


@pytest.mark.parametrize("policy", ["prefix", "least_loaded", "session"])
async def test_three_routers_spread_requests_like_one(
    redis: Redis, namespace: str, policy: str
) -> None:
    alone = Peer(redis, f"{namespace}-alone", 0, policy)
    peers = [Peer(redis, namespace, number, policy) for number in range(3)]
    by_one, by_three = Count[str](), Count[str]()
    for number in range(60):
        wanted = request(range(1000 * number, 1000 * number + 500), session_id=f"s{number}")
        by_one[send(alone.policy, wanted, alone.fleet).candidate.member] += 1
        peer = peers[number % 3]
        by_three[send(peer.policy, wanted, peer.fleet).candidate.member] += 1
        for each in peers * 2:
            await each.shared.exchange()
    assert {peer.loads()[0] for peer in peers} == {by_three["replica-0@1"]}
    for replica in alone.fleet:
        assert by_three[replica.member] == pytest.approx(by_one[replica.member], abs=3)


async def test_what_a_report_shows_is_shared_no_more(redis: Redis, namespace: str) -> None:
    first, second = (Peer(redis, namespace, number, "prefix") for number in range(2))
    send(first.policy, request(range(500)), first.fleet)
    await first.shared.exchange()
    await second.shared.exchange()
    assert sum(second.loads()) == 1
    for replica in first.fleet:
        replica.report(rate=1000.0, running=1)
    await first.shared.exchange()
    await second.shared.exchange()
    assert sum(second.loads()) == 0


async def test_what_a_router_that_is_gone_has_sent_is_forgotten(
    redis: Redis, namespace: str
) -> None:
    gone, left = (Reservations(redis, namespace, name) for name in ("gone", "left"))
    await gone.exchange({"replica-0@1": Reserved(2, 300)}, lease_s=60.0)
    assert await left.exchange(None, 2.0) == {"replica-0@1": Reserved(2, 300)}
    await gone.exchange({"replica-0@1": Reserved(2, 300)}, lease_s=0.0)
    assert await left.exchange(None, 2.0) == {}


async def test_what_several_have_sent_adds_up_and_the_own_part_is_left_out(
    redis: Redis, namespace: str
) -> None:
    boards = [Reservations(redis, namespace, name) for name in "abc"]
    for board in boards:
        await board.exchange({"x": Reserved(1, 10), "y": Reserved(0, 5)}, 60.0)
    assert await boards[0].exchange({}, 60.0) == {"x": Reserved(2, 20), "y": Reserved(0, 10)}
    assert await boards[1].exchange(None, 60.0) == {"x": Reserved(1, 10), "y": Reserved(0, 5)}


async def test_without_redis_a_router_goes_on_with_what_it_knows(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (server, redis):
        first, second = (Peer(redis, "test", number, "prefix") for number in range(2))
        send(first.policy, request(range(500)), first.fleet)
        send(second.policy, request(range(500)), second.fleet)
        await first.shared.exchange()
        await second.shared.exchange()
        assert sum(second.loads()) == 2
        await server.stop()
        await second.shared.exchange()
        assert sum(second.loads()) == 1
        assert second.metrics.get_sample_value("failures_total") == 1
