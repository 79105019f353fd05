"""Keys are known by what is kept of them, and by nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from cluster.api_keys import ApiKey, new_api_key, parse_api_key
from cluster.tenants import ANONYMOUS, Tenant, TenantStore


@pytest.fixture
def store(redis: Redis, namespace: str) -> TenantStore:
    return TenantStore(redis, namespace)


@given(st.text(alphabet="0123456789abcdef", min_size=64, max_size=64))
def test_a_record_matches_its_key_and_no_other(secret: str) -> None:
    key, record = new_api_key("a", "uid")
    assert record.matches(key)
    assert parse_api_key(str(key)) == key
    assert record.matches(ApiKey(key.id, secret)) == (secret == key.secret)


@given(st.text())
def test_whatever_is_no_key_is_not_taken_for_one(text: str) -> None:
    assert parse_api_key(text) is None


async def test_nothing_that_is_kept_or_printed_tells_the_secret(
    store: TenantStore, redis: Redis, namespace: str
) -> None:
    tenant = Tenant(name="a")
    await store.add(tenant)
    key = await store.add_key(tenant)
    kept = [await redis.hgetall(name) for name in await redis.keys(f"{namespace}:*")]
    assert key.secret.encode() not in repr(kept).encode()
    assert key.secret not in repr(key)


async def test_a_tenant_may_have_several_keys_and_lose_one(store: TenantStore) -> None:
    tenant = Tenant(name="a")
    await store.add(tenant)
    old, new = await store.add_key(tenant), await store.add_key(tenant)
    for key in (old, new):
        holder = await store.find(key.id)
        assert holder is not None
        assert holder.tenant == tenant
        assert holder.key.matches(key)
    assert await store.remove_key(old.id)
    assert await store.find(old.id) is None
    assert await store.find(new.id) is not None


async def test_keys_do_not_pass_to_another_tenant_of_the_name(
    store: TenantStore, redis: Redis, namespace: str
) -> None:
    """Not even those that a removal, broken off in the middle, has left behind."""
    first = Tenant(name="a")
    await store.add(first)
    key = await store.add_key(first)
    await redis.hdel(f"{namespace}:tenants", "a")
    second = Tenant(name="a")
    await store.add(second)
    assert await store.find(key.id) is None
    assert second.cache_salt != first.cache_salt


async def test_a_tenant_is_removed_with_its_keys(store: TenantStore) -> None:
    for name in ("a", "b"):
        await store.add(Tenant(name=name))
        await store.add_key(Tenant(name=name))
    with pytest.raises(ValueError, match="exists"):
        await store.add(Tenant(name="a"))
    assert await store.remove("a")
    assert not await store.remove("a")
    assert [tenant.name for tenant in await store.tenants()] == ["b"]
    assert [key.tenant for key in await store.keys()] == ["b"]


def test_only_tenants_of_one_group_have_one_salt() -> None:
    alone = [Tenant(name="a"), Tenant(name="b"), Tenant(name="x")]
    grouped = [Tenant(name=name, cache_group="x") for name in ("c", "d")]
    assert len({tenant.cache_salt for tenant in (*alone, *grouped, ANONYMOUS)}) == 5
    assert grouped[0].cache_salt == grouped[1].cache_salt
    assert ANONYMOUS.cache_salt == b""


def test_a_tenant_survives_its_json() -> None:
    tenant = Tenant(name="a", cache_group="g", is_admin=True)
    assert Tenant.model_validate(json.loads(tenant.model_dump_json())) == tenant
