"""Whatever happens on the way, a router ends up knowing exactly what replicas have cached."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.events import PrefixKeys
from cluster.prefix.follower import PrefixFollower
from tests.cluster.prefix.replicas import FakeCache, Fault
from tests.redis_server import RedisServer

BLOCKS = [os.urandom(16) for _ in range(24)]
NAMESPACE = "test"
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One that may be stopped."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.prefix.publisher._RETRY_S", 0.005)
    monkeypatch.setattr("cluster.prefix.publisher._GATHER_S", 0.0)
    monkeypatch.setattr("cluster.prefix.follower._RETRY_S", 0.005)
    monkeypatch.setattr("cluster.prefix.follower._CHECK_S", 0.02)
    monkeypatch.setattr("cluster.prefix.follower._BLOCK_MS", 10)


class Step(NamedTuple):
    """What happens next, to which replica and which blocks."""

    name: str
    replica: int = 0
    blocks: Sequence[bytes] = ()
    faults: Sequence[Fault] = ()


class Cluster:
    """Replicas, and a router that follows them."""

    def __init__(self, redis: Redis, server: RedisServer) -> None:
        self.redis = redis
        self.server = server
        self.epoch = 0
        self.gaps = self.resyncs = 0
        self.directory = PrefixDirectory(4096)
        self.replicas = [self._replica() for _ in range(2)]
        self.follower = self._follower()

    async def do(self, step: Step) -> None:
        """Have a step happen, and let everybody have a turn or a few."""
        replica = self.replicas[step.replica]
        match step.name:
            case "store":
                replica.store(step.blocks)
            case "lower":
                replica.lower(step.blocks)
            case "remove":
                replica.remove(step.blocks)
            case "clear":
                replica.clear()
            case "tell":
                replica.tell()
            case "tell, and let it be written":
                replica.tell()
                await self.redis.ping()
            case "faults":
                replica.log.faults += step.faults
            case "deliver late":
                await replica.log.deliver_late()
            case "restart":
                await replica.leave()
                self._replace(step.replica)
            case "crash":
                await replica.crash()
                self._replace(step.replica)
            case "new router":
                self.stop_following()
                self.directory = PrefixDirectory(4096)
                self.follower = self._follower()
            case _:
                await self._harm_redis(step.name, self._keys(replica))
        await asyncio.sleep(0)

    async def _harm_redis(self, how: str, keys: PrefixKeys) -> None:
        match how:
            case "lose updates":
                await self.redis.xtrim(keys.stream, 0, approximate=False)
            case "lose the set":
                await self.redis.delete(keys.resident)
            case "lose the other set":
                await self.redis.delete(keys.lowered)
            case "lose the number":
                await self.redis.delete(keys.number)
            case "flush":
                await self.redis.flushall()
            case "restart redis":
                self.server.stop()
                self.server.start()
            case _:
                raise AssertionError(how)

    async def settle(self) -> None:
        """Nothing goes wrong any more; return when the router knows everything."""
        for replica in self.replicas:
            replica.log.faults = []
            await replica.log.deliver_late()
            replica.tell()
        async with asyncio.timeout(PATIENCE_S):
            while not self.is_right():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.002)

    def is_right(self) -> bool:
        """Whether the router's index is what replicas have cached, and where."""
        cached = {r.member: r.cached | r.lowered for r in self.replicas}
        lowered = {r.member: r.lowered for r in self.replicas}
        return (
            self.directory.num_blocks == len(set().union(*cached.values()))
            and self.directory.known >= cached.keys()
            and all(
                self.directory.held([block])
                == tuple(
                    {m: 1 for m, blocks in tier.items() if block in blocks}
                    for tier in (cached, lowered)
                )
                for block in BLOCKS
            )
        )

    async def close(self) -> None:
        self.stop_following()
        for replica in self.replicas:
            await replica.leave()
        await self.redis.aclose()

    def stop_following(self) -> None:
        self._following.cancel()

    def _replica(self) -> FakeCache:
        self.epoch += 1
        return FakeCache(self.redis, NAMESPACE, f"r@{self.epoch}")

    def _replace(self, index: int) -> None:
        self.replicas[index] = self._replica()
        self._follow()

    def _follower(self) -> PrefixFollower:
        self.follower = PrefixFollower(
            self.redis, NAMESPACE, on_gap=self._note_gap, on_resync=self._note_resync
        )
        self._follow()
        self._following = asyncio.create_task(self.follower.run())
        return self.follower

    def _follow(self) -> None:
        self.follower.follow({replica.member: self.directory for replica in self.replicas})

    def _note_gap(self) -> None:
        self.gaps += 1

    def _note_resync(self) -> None:
        self.resyncs += 1

    @staticmethod
    def _keys(replica: FakeCache) -> PrefixKeys:
        return PrefixKeys.of(NAMESPACE, replica.member)


REPLICA = st.integers(0, 1)
SOME = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=8)
CHANGES = st.builds(Step, st.sampled_from(["store", "store", "lower", "remove"]), REPLICA, SOME)
FAULTS = st.builds(
    Step,
    st.just("faults"),
    REPLICA,
    faults=st.lists(st.sampled_from(Fault), min_size=1, max_size=3),
)
MISHAPS = st.builds(
    Step,
    st.sampled_from(
        [
            "clear",
            "deliver late",
            "lose updates",
            "lose the set",
            "lose the other set",
            "lose the number",
            "flush",
            "restart redis",
            "restart",
            "crash",
            "new router",
        ]
    ),
    REPLICA,
)
WORDS = st.builds(Step, st.sampled_from(["tell", "tell, and let it be written"]), REPLICA)
STEPS = st.lists(st.one_of(CHANGES, WORDS, FAULTS, WORDS, CHANGES, MISHAPS), max_size=30)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_the_index_ends_up_as_the_engines_are(server: RedisServer, steps: list[Step]) -> None:
    asyncio.run(_run(server, steps))


async def _run(server: RedisServer, steps: list[Step]) -> None:
    redis = Redis.from_url(server.url, socket_timeout=1.0)
    await redis.flushall()
    cluster = Cluster(redis, server)
    try:
        for step in steps:
            try:
                await cluster.do(step)
            except RedisError:
                # A step's own words to Redis may get lost as well: another has its turn.
                assert step.name not in ("restart", "crash", "new router")
        await cluster.settle()
    finally:
        await cluster.close()
