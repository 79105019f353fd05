"""Quotas hold over all routers together, to the request; what is not used is given back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from redis.asyncio import Redis

import router.quota as quota_module
from cluster.errors import Reason, RequestError
from cluster.redis_client import connect
from cluster.tenants import ANONYMOUS, Tenant, TenantLimits
from router.quota import Quota
from router.quota_script import RENEW, RESERVE, SETTLE
from tests.redis_server import RedisServer

Maker = Callable[[], Quota]
SLICE_S = 60 / 240
PATIENCE_S = 60.0


class RedisClock:
    """Redis's time as the scripts see it, which passes when told to."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key
        self.now_us = 1_800_000_000_000_000

    async def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)
        await self._redis.delete(self._key)
        await self._redis.rpush(self._key, *divmod(self.now_us, 1_000_000))


@pytest.fixture
async def clock(redis: Redis, namespace: str, monkeypatch: pytest.MonkeyPatch) -> RedisClock:
    key = f"{namespace}:clock"
    for name, script in (("RESERVE", RESERVE), ("SETTLE", SETTLE), ("RENEW", RENEW)):
        simulated = script.replace("redis.call('TIME')", f"redis.call('LRANGE', '{key}', 0, -1)")
        monkeypatch.setattr(quota_module, name, simulated)
    clock = RedisClock(redis, key)
    await clock.advance(0)
    return clock


@pytest.fixture
async def make_quota(
    redis_server: RedisServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Maker]:
    """Quotas as routers have them, each with connections of its own; Redis may take its time."""
    monkeypatch.setattr(quota_module, "_PATIENCE_S", PATIENCE_S)
    async with AsyncExitStack() as stack:
        clients: list[Redis] = []

        def make() -> Quota:
            client = connect(redis_server.url)
            clients.append(client)
            return Quota(client, namespace, lambda: pytest.fail("Redis is there"))

        yield make
        for client in clients:
            await stack.enter_async_context(client)


def tenant(**limits: int) -> Tenant:
    return Tenant(name="a", limits=TenantLimits.model_validate(limits))


async def use(quota: Quota, who: Tenant, prompt: int, output: int = 0, most: int = 0) -> bool:
    """One request from its beginning to its end; whether it was let in."""
    try:
        async with quota.reserve(who, prompt_tokens=prompt, n=1, max_tokens=most) as reserved:
            await asyncio.sleep(0)
            reserved.is_sent = True
            reserved.output_tokens = output
    except RequestError:
        return False
    await quota.close()
    return True


async def refused(quota: Quota, who: Tenant, prompt: int = 1) -> float | None:
    """When a request that is refused is told to come back."""
    with pytest.raises(RequestError) as caught:
        async with quota.reserve(who, prompt_tokens=prompt, n=1, max_tokens=0):
            pass
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    return caught.value.retry_after_s


async def test_three_routers_hold_both_quotas_to_one_percent_in_every_minute(
    clock: RedisClock, make_quota: Maker
) -> None:
    """Three times what is allowed, for five minutes, in bursts of all three at once."""
    routers = [make_quota() for _ in range(3)]
    who = tenant(requests_per_minute=100, tokens_per_minute=1000)
    admitted: list[float] = []
    for _ in range(5 * 60):
        await clock.advance(1.0)
        answers = await asyncio.gather(
            *(use(router, who, prompt=7, output=2, most=2) for router in routers for _ in range(2))
        )
        admitted += [clock.now_us / 1e6] * sum(answers)
    for start in admitted:
        in_a_minute = [moment for moment in admitted if start <= moment < start + 60]
        assert len(in_a_minute) <= 100
    assert len(admitted) >= 5 * 100 * 0.99


async def test_tokens_are_settled_at_what_was_used(clock: RedisClock, make_quota: Maker) -> None:
    """Of 1,000 tokens a minute, requests that reserve 260 and use 10 may be a hundred."""
    routers = [make_quota() for _ in range(3)]
    who = tenant(tokens_per_minute=1000)
    answers = [await use(routers[i % 3], who, 4, 6, most=256) for i in range(200)]
    assert 99 <= sum(answers) <= 100


async def test_what_is_used_beyond_the_estimate_counts(
    clock: RedisClock, make_quota: Maker
) -> None:
    quota, who = make_quota(), tenant(tokens_per_minute=100)
    assert await use(quota, who, 10, output=490, most=0)
    await clock.advance(59)
    assert await refused(quota, who) == pytest.approx(1.0, abs=2 * SLICE_S)
    await clock.advance(1 + 2 * SLICE_S)
    assert await use(quota, who, 10)


@pytest.mark.parametrize("spent", [[1], [1, 1, 1], [3, 2, 5, 1]])
async def test_retry_after_is_exact(clock: RedisClock, make_quota: Maker, spent: list[int]) -> None:
    """A microsecond sooner the request is refused, and then it is not."""
    quota, who = make_quota(), tenant(tokens_per_minute=sum(spent))
    for tokens in spent:
        assert await use(quota, who, tokens)
        await clock.advance(1.7)
    wait_s = await refused(quota, who, prompt=spent[0])
    assert wait_s is not None
    await clock.advance(wait_s - 1e-6)
    assert await refused(quota, who, prompt=spent[0]) == pytest.approx(1e-6, abs=1e-7)
    await clock.advance(1e-6)
    assert await use(quota, who, spent[0])


async def test_what_no_replica_was_given_costs_nothing(
    clock: RedisClock, make_quota: Maker
) -> None:
    quota, who = make_quota(), tenant(requests_per_minute=1, tokens_per_minute=10)
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error):
            async with quota.reserve(who, prompt_tokens=5, n=1, max_tokens=5):
                raise error
        await quota.close()
    assert await use(quota, who, 10)
    assert not await use(quota, who, 1)


async def test_what_is_given_up_while_redis_hesitates_costs_nothing(
    make_quota: Maker, redis: Redis
) -> None:
    quota, who = make_quota(), tenant(requests_per_minute=1)
    await redis.client_pause(200)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await use(quota, who, prompt=1)
    await quota.close()
    assert await use(quota, who, prompt=1), "it is the only one in this minute"


async def test_a_prompt_above_the_quota_is_told_not_to_come_back(make_quota: Maker) -> None:
    assert await refused(make_quota(), tenant(tokens_per_minute=10), prompt=11) is None


@asynccontextmanager
async def held(quota: Quota, who: Tenant) -> AsyncIterator[None]:
    async with quota.reserve(who, prompt_tokens=1, n=1, max_tokens=0):
        yield
    await quota.close()


async def test_so_many_are_under_way_at_a_time_over_all_routers(make_quota: Maker) -> None:
    routers, who = [make_quota() for _ in range(3)], tenant(max_concurrency=10)
    inside, most = 0, 0

    async def run(quota: Quota) -> bool:
        nonlocal inside, most
        try:
            async with held(quota, who):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= 1
        except RequestError:
            return False
        return True

    answers = await asyncio.gather(*(run(routers[i % 3]) for i in range(150)))
    assert 1 <= most <= 10
    assert sum(answers) >= 10
    async with AsyncExitStack() as stack:
        for number in range(10):
            await stack.enter_async_context(held(routers[number % 3], who))
        assert await refused(routers[0], who)


async def test_the_places_of_a_killed_router_come_back(
    clock: RedisClock, make_quota: Maker
) -> None:
    """Those of one that lives do not, however long its requests take."""
    killed, alive, who = make_quota(), make_quota(), tenant(max_concurrency=2)
    leak = killed.reserve(who, prompt_tokens=1, n=1, max_tokens=0)
    await leak.__aenter__()
    async with held(alive, who):
        for _ in range(3):
            assert await refused(alive, who)
            await clock.advance(4)
            await alive.renew()
        async with held(alive, who):
            assert await refused(alive, who)
    async with held(killed, who), held(alive, who):
        pass
    await leak.__aexit__(None, None, None)
    await killed.close()


async def test_whoever_has_no_limits_does_not_reach_redis(redis: Redis, namespace: str) -> None:
    quota = Quota(redis, namespace, lambda: None)
    async with quota.reserve(ANONYMOUS, prompt_tokens=10**9, n=1, max_tokens=10**9):
        pass
    await quota.close()
    assert not await redis.keys(f"{namespace}:*")


async def test_while_redis_is_away_all_are_let_in_and_counted() -> None:
    server = RedisServer()
    server.start()
    num_unseen = 0

    def count() -> None:
        nonlocal num_unseen
        num_unseen += 1

    try:
        async with connect(server.url) as client:
            quota, who = Quota(client, "test", count), tenant(requests_per_minute=1)
            server.stop()
            for _ in range(5):
                assert await use(quota, who, 1)
            assert num_unseen == 5
    finally:
        server.remove()


async def test_nothing_stays_in_redis_of_a_tenant_that_does_not_come_again(
    make_quota: Maker, redis: Redis, namespace: str
) -> None:
    who = tenant(requests_per_minute=5, max_concurrency=5)
    assert await use(make_quota(), who, 1)
    for key in await redis.keys(f"{namespace}:quota:*"):
        assert 0 < await redis.pttl(key) <= 61_000
