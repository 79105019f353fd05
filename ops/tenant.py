"""`trunkline tenant`."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cluster.api_keys import ApiKeyRecord
from cluster.tenants import Tenant, TenantLimits, TenantStore
from ops.cluster_redis import cluster_redis
from ops.failure import CommandError, UsageError

Result = TypeVar("Result")


class Changes(NamedTuple):
    """What an operator gave; None leaves a field as it is, 0 or an empty text means none."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrency: int | None
    weight: float | None
    max_priority: int | None
    cache_group: str | None
    is_admin: bool | None

    def apply(self, tenant: Tenant) -> Tenant:
        """The tenant with them. Raises ValidationError."""
        counts = (self.requests_per_minute, self.tokens_per_minute, self.max_concurrency)
        limits: dict[str, Any] = {
            name: count or None
            for name, count in zip(self._fields, counts, strict=False)
            if count is not None
        }
        limits |= _given(weight=self.weight, max_priority=self.max_priority)
        fields = _given(is_admin=self.is_admin)
        if self.cache_group is not None:
            fields["cache_group"] = self.cache_group or None
        changed = TenantLimits.model_validate(tenant.limits.model_dump() | limits)
        return Tenant.model_validate(tenant.model_dump() | fields | {"limits": changed})


class Tenants:
    """What the command does. Methods raise CommandError."""

    def __init__(self, redis_url: str | None, namespace: str) -> None:
        """Without a URL, those of the cluster that runs on this machine."""
        self._redis_url = redis_url
        self._namespace = namespace

    def add(self, name: str, changes: Changes) -> str:
        """Add a tenant; returns its first key."""

        async def run(store: TenantStore) -> str:
            tenant = _checked(lambda: changes.apply(Tenant(name=name)))
            try:
                await store.add(tenant)
            except ValueError as error:
                raise CommandError(str(error)) from error
            return str(await store.add_key(tenant))

        return self._in_store(run)

    def show(self, *, as_json: bool) -> None:
        """Print all tenants."""

        async def run(store: TenantStore) -> tuple[list[Tenant], list[ApiKeyRecord]]:
            return await store.tenants(), await store.keys()

        tenants, keys = self._in_store(run)
        by_uid: defaultdict[str, list[ApiKeyRecord]] = defaultdict(list)
        for key in keys:
            by_uid[key.tenant_uid].append(key)
        if as_json:
            contents = [_content(tenant) | _keys(by_uid[tenant.uid]) for tenant in tenants]
            print(json.dumps(contents, indent=2))
        else:
            Console().print(_table(tenants, by_uid))

    def add_key(self, name: str) -> str:
        """One more key of a tenant."""

        async def run(store: TenantStore) -> str:
            return str(await store.add_key(await _existing(store, name)))

        return self._in_store(run)

    def remove_key(self, name: str, key_id: str) -> None:
        """Take a key away from a tenant."""

        async def run(store: TenantStore) -> None:
            tenant = await _existing(store, name)
            own = [record.id for record in await store.keys() if record.tenant_uid == tenant.uid]
            if key_id not in own:
                has = ", ".join(own) or "none"
                raise CommandError(f"tenant {name} has no key {key_id}; it has: {has}")
            await store.remove_key(key_id)

        self._in_store(run)

    def remove(self, name: str) -> None:
        """Remove a tenant and its keys."""

        async def run(store: TenantStore) -> None:
            await _existing(store, name)
            await store.remove(name)

        self._in_store(run)

    def change(self, name: str, changes: Changes) -> str:
        """Change a tenant; returns what it is then, as JSON."""

        async def run(store: TenantStore) -> Tenant:
            before = await _existing(store, name)
            tenant = _checked(lambda: changes.apply(before))
            await store.put(tenant)
            return tenant

        return json.dumps(_content(self._in_store(run)), indent=2)

    def _in_store(self, run: Callable[[TenantStore], Awaitable[Result]]) -> Result:
        async def connected() -> Result:
            async with cluster_redis(self._redis_url, self._namespace) as (redis, namespace):
                return await run(TenantStore(redis, namespace))

        return asyncio.run(connected())


async def _existing(store: TenantStore, name: str) -> Tenant:
    tenant = await store.get(name)
    if tenant is None:
        known = ", ".join(one.name for one in await store.tenants()) or "none"
        raise CommandError(f"tenant {name!r} does not exist; there are: {known}")
    return tenant


def _checked(make: Callable[[], Tenant]) -> Tenant:
    try:
        return make()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(f"{field}: got {first['input']!r}. {first['msg']}") from error


def _given(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _content(tenant: Tenant) -> dict[str, Any]:
    return {
        "name": tenant.name,
        **tenant.limits.model_dump(),
        "cache_group": tenant.cache_group,
        "is_admin": tenant.is_admin,
    }


def _keys(keys: Sequence[ApiKeyRecord]) -> dict[str, Any]:
    return {"keys": [{"id": key.id, "created_at": key.created_at} for key in keys]}


def _table(tenants: list[Tenant], keys: dict[str, list[ApiKeyRecord]]) -> Table:
    table = Table(
        *("tenant", "requests/min", "tokens/min", "at a time", "weight", "priority", "group"),
        *("admin", "keys"),
    )
    for tenant in tenants:
        may = tenant.limits
        counts = (may.requests_per_minute, may.tokens_per_minute, may.max_concurrency)
        table.add_row(
            tenant.name,
            *("-" if count is None else str(count) for count in counts),
            *(f"{may.weight:g}", f"≤ {may.max_priority}", tenant.cache_group or "-"),
            "yes" if tenant.is_admin else "-",
            "\n".join(f"{key.id} {_date(key.created_at)}" for key in keys[tenant.uid]),
        )
    return table


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
