"""Who uses the cluster, what they may, and by which keys they are known; in Redis.

Keys, under the cluster's namespace: ``tenants`` is a hash of tenants by name, ``api_keys`` a hash
of key records by key id.
"""

import secrets
from collections.abc import Awaitable
from typing import Annotated, Final, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from redis.asyncio import Redis

from cluster.api_keys import ApiKey, ApiKeyRecord, new_api_key

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]


class TenantLimits(BaseModel):
    """What a tenant may; None sets no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    requests_per_minute: PositiveInt | None = None
    """Requests accepted in any 60 seconds, by all routers together."""
    tokens_per_minute: PositiveInt | None = None
    """Tokens of prompts and answers in any 60 seconds."""
    max_concurrency: PositiveInt | None = None
    """Requests under way at a time, those that wait included."""
    weight: float = Field(default=1.0, ge=0.01, le=100.0)
    """Share of the cluster's work under router.queue fair, beside the others' weights."""
    max_priority: int = Field(default=0, ge=0, le=100)
    """Highest priority that its requests may have."""


class Tenant(BaseModel):
    """One user of the cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Name
    uid: str = Field(default_factory=lambda: secrets.token_hex(16))
    """Tells it from another tenant of this name, before or after."""
    limits: TenantLimits = TenantLimits()
    cache_group: Name | None = None
    """Tenants of one group share cached prefixes; without a group it shares them with nobody."""
    is_admin: bool = False
    """Whether it may use trunkline.v1.Admin."""

    @property
    def cache_salt(self) -> bytes:
        """What keeps its cached prefixes apart from those of other groups."""
        if self.cache_group is not None:
            return f"group {self.cache_group}".encode()
        return f"tenant {self.uid}".encode() if self.uid else b""


ANONYMOUS: Final = Tenant(
    name="anonymous", uid="", limits=TenantLimits(max_priority=100), is_admin=True
)
"""Everybody, where no keys are asked for."""


class Holder(NamedTuple):
    """A key's record and the tenant that it stands for."""

    key: ApiKeyRecord
    tenant: Tenant


class TenantStore:
    """Reads and writes tenants and keys. Methods raise redis.exceptions.RedisError."""

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._redis = redis
        self._tenants = f"{namespace}:tenants"
        self._keys = f"{namespace}:api_keys"

    async def add(self, tenant: Tenant) -> None:
        """Make a tenant known. Raises ValueError if there is one of its name."""
        text = tenant.model_dump_json()
        if not await self._redis.hsetnx(self._tenants, tenant.name, text):
            raise ValueError(f"tenant {tenant.name!r} exists")

    async def put(self, tenant: Tenant) -> None:
        """Make a tenant known in place of the one of its name."""
        text = tenant.model_dump_json()
        await self._redis.hset(self._tenants, tenant.name, text)

    async def get(self, name: str) -> Tenant | None:
        """The tenant of this name."""
        found = await cast(Awaitable[bytes | None], self._redis.hget(self._tenants, name))
        return None if found is None else Tenant.model_validate_json(found)

    async def tenants(self) -> list[Tenant]:
        """All tenants, by name."""
        found = await cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(self._tenants))
        return [Tenant.model_validate_json(found[name]) for name in sorted(found)]

    async def remove(self, name: str) -> bool:
        """Forget a tenant and its keys; returns whether it was known."""
        removed = await self._redis.hdel(self._tenants, name)
        # Keys that are left when this is broken off belong to a uid that never comes back.
        if ids := [record.id for record in await self.keys() if record.tenant == name]:
            await self._redis.hdel(self._keys, *ids)
        return bool(removed)

    async def add_key(self, tenant: Tenant) -> ApiKey:
        """A new key for a tenant; it cannot be read again."""
        key, record = new_api_key(tenant.name, tenant.uid)
        text = record.model_dump_json()
        await self._redis.hset(self._keys, key.id, text)
        return key

    async def keys(self) -> list[ApiKeyRecord]:
        """The records of all keys, oldest first."""
        found = await cast(Awaitable[list[bytes]], self._redis.hvals(self._keys))
        records = [ApiKeyRecord.model_validate_json(text) for text in found]
        return sorted(records, key=lambda record: record.created_at)

    async def remove_key(self, key_id: str) -> bool:
        """Forget a key; returns whether it was known."""
        return bool(await self._redis.hdel(self._keys, key_id))

    async def find(self, key_id: str) -> Holder | None:
        """Whom the key of this id stands for; its secret is still to be checked."""
        found = await cast(Awaitable[bytes | None], self._redis.hget(self._keys, key_id))
        if found is None:
            return None
        key = ApiKeyRecord.model_validate_json(found)
        tenant = await self.get(key.tenant)
        return Holder(key, tenant) if tenant and tenant.uid == key.tenant_uid else None
