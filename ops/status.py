"""`trunkline status`."""

import asyncio
import json
from dataclasses import asdict, dataclass, replace

import httpx
from prometheus_client.parser import text_string_to_metric_families
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from cluster.redis_client import connect, without_password
from cluster.registry import Registry, ReplicaRecord
from ops.failure import CommandError, UsageError
from ops.serve_run_file import find_run_file

_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica, and what its metrics say; None where they cannot be read."""

    replica: str
    epoch: int
    model: str
    address: str
    pid: int
    running_sequences: int | None = None
    waiting_requests: int | None = None
    cache_usage_ratio: float | None = None
    prefix_hit_ratio: float | None = None
    """Share of the prompt tokens so far that were found in the prefix cache."""
    generated_tokens: int | None = None
    preemptions: int | None = None


def status(redis_url: str | None, namespace: str, *, as_json: bool) -> None:
    """Print all replicas. Raises CommandError if there is no cluster or it has none."""
    if redis_url is None:
        run = find_run_file()
        if run is None:
            raise CommandError("no cluster runs on this machine; give --redis-url for another one")
        redis_url, namespace = run.redis_url, run.namespace
    replicas = asyncio.run(_read(redis_url, namespace))
    if as_json:
        print(json.dumps([asdict(replica) for replica in replicas], indent=2))
    else:
        Console().print(_table(replicas))
    if not replicas:
        raise CommandError("no replica is ready")


async def _read(redis_url: str, namespace: str) -> list[ReplicaStatus]:
    try:
        redis = connect(redis_url)
    except ValueError as error:
        raise UsageError(f"--redis-url: {error}") from error
    try:
        async with redis, httpx.AsyncClient(timeout=_TIMEOUT_S) as http:
            records = await Registry(redis, namespace).replicas()
            return list(await asyncio.gather(*(_ask(http, record) for record in records)))
    except (RedisError, OSError) as error:
        raise CommandError(f"{without_password(redis_url)}: {error}") from error


async def _ask(http: httpx.AsyncClient, record: ReplicaRecord) -> ReplicaStatus:
    known = ReplicaStatus(record.replica_id, record.epoch, record.model, record.address, record.pid)
    try:
        answer = await http.get(f"http://{record.metrics_address}/metrics")
        values = _values(answer.raise_for_status().text)
        return replace(
            known,
            running_sequences=int(values["running_sequences"]),
            waiting_requests=int(values["waiting_requests"]),
            cache_usage_ratio=values["cache_usage_ratio"],
            prefix_hit_ratio=values["prefix_hit_tokens"] / max(1.0, values["prompt_tokens"]),
            generated_tokens=int(values["generated_tokens"]),
            preemptions=int(values["preemptions"]),
        )
    except (httpx.HTTPError, KeyError):
        # It may have ended a moment ago; that its figures are missing shows in the table.
        return known


def _values(text: str) -> dict[str, float]:
    """A replica's metrics by short name."""
    prefix = "trunkline_replica_"
    return {
        family.name.removeprefix(prefix): family.samples[0].value
        for family in text_string_to_metric_families(text)
        if family.name.startswith(prefix) and family.samples
    }


def _table(replicas: list[ReplicaStatus]) -> Table:
    columns = ("replica", "model", "pid", "running", "waiting", "cache", "hits", "tokens")
    table = Table(*columns)
    for r in replicas:
        table.add_row(
            *(r.replica, r.model, str(r.pid)),
            *(_number(r.running_sequences), _number(r.waiting_requests)),
            *(_percent(r.cache_usage_ratio), _percent(r.prefix_hit_ratio)),
            _number(r.generated_tokens),
        )
    return table


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.0%}"
