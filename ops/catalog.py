"""`trunkline models`: the names that clients can ask for."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from cluster.catalog import Alias, CatalogError, CatalogStore, Entry, Fallback, Split
from cluster.registry import Registry
from ops.cluster_redis import cluster_redis
from ops.failure import CommandError, UsageError

Result = TypeVar("Result")


class _Cluster(NamedTuple):
    catalog: CatalogStore
    registry: Registry


class Catalog:
    """What the command does. Methods raise CommandError."""

    def __init__(self, redis_url: str | None, namespace: str) -> None:
        """Without a URL, that of the cluster that runs on this machine."""
        self._redis_url = redis_url
        self._namespace = namespace

    def show(self, *, as_json: bool) -> None:
        """Print the models that have replicas, and the names that stand for models."""

        async def run(cluster: _Cluster) -> tuple[Counter[str], dict[str, Entry]]:
            replicas = await cluster.registry.replicas()
            return Counter(record.model for record in replicas), await cluster.catalog.entries()

        replicas, entries = self._in_cluster(run)
        if as_json:
            named = {name: entries[name].model_dump() for name in sorted(entries)}
            print(json.dumps({"models": dict(sorted(replicas.items())), "names": named}, indent=2))
        else:
            Console().print(_table(replicas, entries))

    def alias(self, name: str, target: str, *, allow_unknown: bool) -> None:
        """Have a name stand for another one."""
        self._put(name, lambda: Alias(target=target), allow_unknown=allow_unknown)

    def split(self, name: str, weights: Sequence[str], *, allow_unknown: bool) -> None:
        """Share a name's sessions out among `MODEL=WEIGHT`s."""
        parsed = dict(_weight(text) for text in weights)
        if len(parsed) < len(weights):
            raise UsageError(f"{', '.join(weights)}: expected each name once")
        self._put(name, lambda: Split(weights=parsed), allow_unknown=allow_unknown)

    def fallback(self, name: str, chain: Sequence[str], *, allow_unknown: bool) -> None:
        """Have a name stand for the first of these that can take a request."""
        self._put(name, lambda: Fallback(chain=tuple(chain)), allow_unknown=allow_unknown)

    def remove(self, name: str) -> None:
        """Have a name stand for nothing but a model of that name."""
        self._in_cluster(lambda cluster: cluster.catalog.remove(name))

    def _put(self, name: str, make: Callable[[], Entry], *, allow_unknown: bool) -> None:
        try:
            entry = make()
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"]))
            raise UsageError(f"{field}: got {first['input']!r}. {first['msg']}") from error
        self._in_cluster(
            lambda cluster: cluster.catalog.put(name, entry, allow_unknown=allow_unknown)
        )

    def _in_cluster(self, run: Callable[[_Cluster], Awaitable[Result]]) -> Result:
        async def connected() -> Result:
            async with cluster_redis(self._redis_url, self._namespace) as (redis, namespace):
                cluster = _Cluster(CatalogStore(redis, namespace), Registry(redis, namespace))
                return await run(cluster)

        try:
            return asyncio.run(connected())
        except CatalogError as error:
            raise CommandError(str(error)) from error


def _weight(text: str) -> tuple[str, float]:
    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError as error:
        raise UsageError(f"{text!r}: expected MODEL=WEIGHT, such as demo=90") from error


def _table(replicas: Counter[str], entries: dict[str, Entry]) -> Table:
    table = Table("name", "stands for", "replicas")
    for name in sorted({*replicas, *entries}):
        entry = entries.get(name)
        count = str(replicas[name]) if name in replicas else "-"
        table.add_row(name, "itself" if entry is None else _described(entry), count)
    return table


def _described(entry: Entry) -> str:
    match entry:
        case Alias():
            return entry.target
        case Split():
            total = sum(entry.weights.values())
            shares = (f"{name} {w / total:.1%}" for name, w in entry.weights.items())
            return ", ".join(shares)
        case Fallback():
            return ", else ".join(entry.chain)
