"""Byte store: what is read is what was written under that key, or it is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError

from cluster.prefix.byte_store import ByteStore
from cluster.prefix.byte_value import CorruptValueError, seal, unseal
from tests.cluster.redis_fixture import running_redis

BYTES = st.binary(max_size=200)


@given(key=BYTES, payload=BYTES)
def test_a_value_is_read_back(key: bytes, payload: bytes) -> None:
    assert unseal(key, seal(key, memoryview(payload)), len(payload)) == payload


@given(key=BYTES, payload=BYTES, data=st.data())
def test_a_value_that_was_changed_is_refused(
    key: bytes, payload: bytes, data: st.DataObject
) -> None:
    """One bit anywhere that means something, a piece cut off or put on, another key or length."""
    value = seal(key, memoryview(payload))
    bit = data.draw(st.integers(0, 8 * len(value) - 1))
    flipped = bytearray(value)
    flipped[bit // 8] ^= 1 << bit % 8
    if bit // 8 not in (6, 7):  # padding
        with pytest.raises(CorruptValueError):
            unseal(key, bytes(flipped), len(payload))
    cut = data.draw(st.integers(0, len(value) - 1))
    for wrong in (value[:cut], value + value[: cut + 1]):
        with pytest.raises(CorruptValueError, match="bytes, expected"):
            unseal(key, wrong, len(payload))
    with pytest.raises(CorruptValueError, match="checksum"):
        unseal(key + b"x", value, len(payload))
    with pytest.raises(CorruptValueError):
        unseal(key, value, len(payload) + 1)


def store_at(url: str, layout: bytes = b"layout") -> ByteStore:
    return ByteStore(url, layout, timeout_s=2.0)


async def test_blocks_are_shared_by_layout(tmp_path: Path) -> None:
    blocks = {bytes([i]) * 16: memoryview(bytes([i]) * 100) for i in range(3)}
    hashes = list(blocks)
    async with running_redis(tmp_path) as (server, _):
        store, other = store_at(server.url), store_at(server.url, b"other")
        assert store.num_leading(hashes) == 0
        store.put(blocks)
        assert store.num_leading([*hashes, b"?", hashes[0]]) == 3
        assert other.num_leading(hashes) == 0
        values = store_at(server.url).get([hashes[2], b"?", hashes[0]])
        assert values[1] is None
        assert values[2] is not None
        assert unseal(store.key(hashes[0]), values[2], 100) == blocks[hashes[0]]
        store.remove(hashes[1])
        assert store.touch(hashes) == [True, False, True]
        assert store.num_leading(hashes) == 1
        store.close()
        other.close()


async def test_a_server_without_maxmemory_is_filled_up_to_the_budget(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (server, client):
        store = store_at(server.url)
        used = int((await client.info("memory"))["used_memory"])
        assert store.room_bytes(1) == 0
        assert 0 < store.room_bytes(2 * used) < 2 * used
        await client.config_set("maxmemory", 2**25)
        assert store.room_bytes(1) == 1
        store.close()


async def test_a_server_that_is_away_is_an_error(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (server, _):
        store = store_at(server.url)
        assert store.touch([b"x"]) == [False]
    with pytest.raises(RedisError):
        store.touch([b"x"])
    with pytest.raises(ValueError, match="URL"):
        store_at("http://example")
