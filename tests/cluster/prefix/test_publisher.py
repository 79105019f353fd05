"""What a replica writes of its cache: at once, for as long as it lives, and without waiting."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cluster.prefix.block_log import MAX_UPDATES, BlockLog
from cluster.prefix.events import CacheChange, CacheEvent, PrefixKeys, Update, UpdateError, joined
from cluster.prefix.publisher import PrefixPublisher
from tests.redis_server import RedisServer

MEMBER = "r@1"
BLOCKS = [os.urandom(16) for _ in range(10)]
LEASE_S = 0.3
PATIENCE_S = 20.0


@pytest.fixture
def keys(namespace: str) -> PrefixKeys:
    return PrefixKeys.of(namespace, MEMBER)


@pytest.fixture
def block_log(redis: Redis, namespace: str) -> BlockLog:
    return BlockLog(redis, namespace, MEMBER, LEASE_S)


@pytest.fixture
async def publisher(block_log: BlockLog) -> AsyncIterator[PrefixPublisher]:
    publisher = PrefixPublisher(block_log, LEASE_S)
    running = asyncio.create_task(publisher.run())
    yield publisher
    running.cancel()
    await asyncio.wait([running])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.005)


async def updates_in(redis: Redis, keys: PrefixKeys) -> list[Update]:
    entries = cast(list[tuple[bytes, dict[bytes, bytes]]], await redis.xrange(keys.stream))
    return [Update.from_entry(entry_id, fields) for entry_id, fields in entries]


def stored(*blocks: bytes) -> list[CacheEvent]:
    return [CacheEvent(CacheChange.STORED, list(blocks))]


def lowered(*blocks: bytes) -> list[CacheEvent]:
    return [CacheEvent(CacheChange.LOWERED, list(blocks))]


def removed(*blocks: bytes) -> list[CacheEvent]:
    return [CacheEvent(CacheChange.REMOVED, list(blocks))]


async def test_set_stream_and_number_say_the_same(
    redis: Redis, keys: PrefixKeys, publisher: PrefixPublisher
) -> None:
    async def has(*blocks: bytes) -> bool:
        return await redis.smembers(keys.resident) == set(blocks)

    publisher.note(stored(*BLOCKS))
    await until(lambda: has(*BLOCKS))
    publisher.note(removed(*BLOCKS[3:]))
    await until(lambda: has(*BLOCKS[:3]))
    publisher.note([CacheEvent(CacheChange.CLEARED, []), *stored(BLOCKS[9])])
    await until(lambda: has(BLOCKS[9]))
    updates = await updates_in(redis, keys)
    assert updates[0].rewritten
    assert [update.sequence_number for update in updates] == list(range(1, len(updates) + 1))
    assert await redis.get(keys.number) == str(len(updates)).encode()
    cached: set[bytes] = set()
    for update in updates:
        cached = set() if update.cleared else cached
        cached |= {update.stored[i : i + 16] for i in range(0, len(update.stored), 16)}
        cached -= {update.removed[i : i + 16] for i in range(0, len(update.removed), 16)}
    assert cached == {BLOCKS[9]}


async def test_a_block_is_in_one_set_at_a_time(
    redis: Redis, keys: PrefixKeys, publisher: PrefixPublisher
) -> None:
    """On the device or in host memory only, also when Redis is told anew."""

    async def has(resident: set[bytes], lower: set[bytes]) -> bool:
        sets = [await redis.smembers(key) for key in (keys.resident, keys.lowered)]
        return sets == [resident, lower]

    first, second, third = ({block} for block in BLOCKS[:3])
    publisher.note(stored(*BLOCKS[:3]))
    await until(lambda: has(first | second | third, set()))
    publisher.note(lowered(*BLOCKS[1:3]))
    await until(lambda: has(first, second | third))
    publisher.note([*stored(BLOCKS[1]), *removed(BLOCKS[2])])
    await until(lambda: has(first | second, set()))
    publisher.note(lowered(BLOCKS[1]))
    await until(lambda: has(first, second))
    await redis.delete(keys.lowered)
    await until(lambda: has(first, second))


async def test_what_changes_twice_before_it_is_written_is_told_once(
    redis: Redis, keys: PrefixKeys, publisher: PrefixPublisher
) -> None:
    async def is_written() -> bool:
        return bool(await redis.scard(keys.resident))

    publisher.note(stored(BLOCKS[0]))
    await until(is_written)
    publisher.note(
        [*stored(BLOCKS[1]), *removed(BLOCKS[1]), *stored(BLOCKS[2]), *removed(BLOCKS[0])]
    )

    async def is_over() -> bool:
        return await redis.smembers(keys.resident) == {BLOCKS[2]}

    await until(is_over)
    update = (await updates_in(redis, keys))[-1]
    assert update.stored == BLOCKS[2]
    assert {update.removed[:16], update.removed[16:]} == {BLOCKS[0], BLOCKS[1]}


async def test_more_than_one_update_can_hold_arrives(
    redis: Redis, keys: PrefixKeys, publisher: PrefixPublisher
) -> None:
    async def has(number: int) -> bool:
        return await redis.scard(keys.resident) == number

    many = [os.urandom(16) for _ in range(20_000)]
    publisher.note(stored(many[0]))
    await until(lambda: has(1))
    publisher.note(stored(*many[1:]))
    await until(lambda: has(20_000))
    # And as a whole, when Redis has forgotten it.
    await redis.delete(*keys)
    await until(lambda: has(20_000))


async def test_keys_end_by_themselves_and_are_prolonged_while_the_replica_lives(
    redis: Redis, keys: PrefixKeys, publisher: PrefixPublisher
) -> None:
    publisher.note([*stored(*BLOCKS), *lowered(BLOCKS[0])])

    async def all_there() -> bool:
        return await redis.exists(*keys) == len(keys)

    await until(all_there)
    life_ms = 10 * LEASE_S * 1000
    for key in keys:
        assert 0 < await redis.pttl(key) <= life_ms
        assert await redis.pexpire(key, 500)

    async def all_prolonged() -> bool:
        return all([await redis.pttl(key) > 500 for key in keys])

    await until(all_prolonged)


async def test_a_replica_that_leaves_in_order_leaves_nothing(
    redis: Redis, block_log: BlockLog, keys: PrefixKeys, namespace: str
) -> None:
    publisher = PrefixPublisher(block_log, LEASE_S)
    running = asyncio.create_task(publisher.run())
    publisher.note(stored(*BLOCKS))

    async def is_written() -> bool:
        return await redis.scard(keys.resident) == len(BLOCKS)

    await until(is_written)
    running.cancel()
    await asyncio.wait([running])
    assert await redis.keys(f"{namespace}:*") == []


async def test_the_stream_does_not_grow_without_end(redis: Redis, keys: PrefixKeys) -> None:
    block_log = BlockLog(redis, keys.stream.partition(":")[0], MEMBER, LEASE_S)
    assert await block_log.rewrite(1, [], []) == 1
    for number in range(2, 3 * MAX_UPDATES):
        assert await block_log.append(Update(number, stored=os.urandom(16)))
    assert MAX_UPDATES <= await redis.xlen(keys.stream) <= 1.2 * MAX_UPDATES


async def test_an_update_is_taken_once_and_only_after_the_one_before(
    redis: Redis, block_log: BlockLog, keys: PrefixKeys
) -> None:
    assert not await block_log.append(Update(1, stored=BLOCKS[0]))
    assert await block_log.rewrite(1, BLOCKS[:2], BLOCKS[2:3]) == 1
    assert await block_log.append(Update(2, removed=BLOCKS[0]))
    assert await block_log.append(Update(2, removed=BLOCKS[0]))
    assert await redis.xlen(keys.stream) == 2
    assert not await block_log.append(Update(4, removed=BLOCKS[1]))
    assert not await block_log.append(Update(1, removed=BLOCKS[1]))
    assert await redis.smembers(keys.resident) == {BLOCKS[1]}
    # A set that was on its way for too long is not wanted any more.
    assert await block_log.rewrite(2, BLOCKS, []) == 2
    assert await block_log.rewrite(1, BLOCKS, []) == 2
    assert await redis.smembers(keys.resident) == {BLOCKS[1]}
    assert await redis.smembers(keys.lowered) == {BLOCKS[2]}
    assert await block_log.renew(2, 1, 1)
    assert not await block_log.renew(2, 2, 1)
    assert not await block_log.renew(2, 1, 0)
    assert not await block_log.renew(1, 1, 1)


async def test_a_redis_that_does_not_answer_holds_nobody_up(
    redis_server: RedisServer, keys: PrefixKeys, namespace: str
) -> None:
    """While it is silent, what is noted costs no wait, and afterwards it is told all."""
    async with Redis.from_url(redis_server.url, socket_timeout=0.05, retry=None) as redis:
        publisher = PrefixPublisher(BlockLog(redis, namespace, MEMBER, LEASE_S), LEASE_S)
        running = asyncio.create_task(publisher.run())
        await redis.client_pause(300)
        for block in BLOCKS:
            publisher.note(stored(block))
            await asyncio.sleep(0)

        async def is_written() -> bool:
            try:
                return await redis.smembers(keys.resident) == set(BLOCKS)
            except RedisError:
                return False

        await until(is_written)
        running.cancel()
        await asyncio.wait([running])


def test_entries_that_are_no_updates_are_refused() -> None:
    update = Update(7, joined(BLOCKS[:2]), BLOCKS[4], BLOCKS[3], cleared=True)
    assert Update.from_entry(b"7-0", update.fields()) == update
    with pytest.raises(UpdateError, match="stored: got 3 bytes"):
        Update.from_entry(b"7-0", {b"stored": b"abc"})
