"""`trunkline explain`."""

import asyncio
import json
import sys
from datetime import UTC
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from redis.exceptions import RedisError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from trunkline.v1 import admin_pb2 as admin
from trunkline.v1.admin_pb2_grpc import AdminStub

from cluster.redis_client import connect, without_password
from cluster.registry import Registry, RouterRecord
from ops.failure import CommandError, UsageError
from ops.serve_run_file import find_run_file

_TIMEOUT_S = 5.0


def explain(
    request_id: str, redis_url: str | None, namespace: str, api_key: str | None, *, as_json: bool
) -> None:
    """Print every choice of a replica for a request.

    Raises CommandError if there is no cluster, or none of its routers remembers the request.
    """
    if redis_url is None:
        run = find_run_file()
        if run is None:
            raise CommandError("no cluster runs on this machine; give --redis-url for another one")
        redis_url, namespace = run.redis_url, run.namespace
    decisions = asyncio.run(_ask_all(request_id, redis_url, namespace, api_key))
    if not decisions:
        raise CommandError(f"no router remembers a request {request_id!r}")
    if as_json:
        print(json.dumps([MessageToDict(decision) for decision in decisions], indent=2))
        return
    for decision in decisions:
        Console().print(_table(decision))


async def _ask_all(
    request_id: str, redis_url: str, namespace: str, api_key: str | None
) -> list[admin.Decision]:
    """What all routers know, oldest first."""
    try:
        redis = connect(redis_url)
    except ValueError as error:
        raise UsageError(f"--redis-url: {error}") from error
    try:
        async with redis:
            routers = await Registry(redis, namespace).routers()
    except (RedisError, OSError) as error:
        raise CommandError(f"{without_password(redis_url)}: {error}") from error
    if not routers:
        raise CommandError("no router is running")
    answers = await asyncio.gather(*(_ask(record, request_id, api_key) for record in routers))
    return sorted((d for answer in answers for d in answer), key=lambda d: d.time.ToNanoseconds())


async def _ask(record: RouterRecord, request_id: str, api_key: str | None) -> list[admin.Decision]:
    """What one router knows; of one that does not answer, that is said and no more."""
    metadata = None if api_key is None else (("authorization", f"Bearer {api_key}"),)
    try:
        async with grpc.aio.insecure_channel(record.grpc_address) as channel:
            stub: Any = AdminStub(channel)
            wanted = admin.ExplainRequest(request_id=request_id)
            answer = await stub.Explain(wanted, timeout=_TIMEOUT_S, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        if error.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
            raise CommandError(f"{record.grpc_address}: {error.details()}") from error
        problem = error.details() or error.code().name
        print(f"trunkline: router {record.grpc_address}: {problem}", file=sys.stderr)
        return []
    return list(answer.decisions)


def _table(decision: admin.Decision) -> Table:
    time = decision.time.ToDatetime(UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    title = (
        f"{time}  {decision.model}, {decision.prompt_tokens} prompt tokens, {decision.cause}: "
        f"{decision.chosen} by {decision.basis} "
        f"(policy {decision.policy}, router {decision.router_id})"
    )
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("")
    table.add_column("replica", overflow="fold", min_width=12)
    for name in ("cached", "pending", "queued", "tokens/s"):
        table.add_column(name, justify="right")
    for name in ("queue", "prefill", "fetch", "decode", "work", "total ms"):
        table.add_column(name, justify="right")
    for cost in sorted(decision.candidates, key=lambda cost: (cost.total_ms, cost.replica)):
        parts = (cost.queue_ms, cost.prefill_ms, cost.fetch_ms, cost.decode_ms, cost.work_ms)
        table.add_row(
            ">" if cost.replica == decision.chosen else "",
            cost.replica,
            *(_cached(cost), f"{cost.pending_sequences}"),
            *(f"{cost.queued_prefill_tokens}", _rate(cost.prefill_tokens_per_s)),
            *(f"{part:,.1f}" for part in parts),
            f"{cost.total_ms:,.1f}",
        )
    return table


def _cached(cost: admin.CandidateCost) -> str:
    """Tokens on the device, and in host memory only."""
    return f"{cost.cached_tokens}" + (f"+{cost.fetchable_tokens}" if cost.fetchable_tokens else "")


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s else "?"
