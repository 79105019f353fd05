"""Operators make tenants and keys, change them and take them away."""

import asyncio
import json
from collections.abc import Callable

import pytest
from redis.asyncio import Redis
from typer.testing import CliRunner

from cluster.api_keys import parse_api_key
from cluster.redis_client import connect
from cluster.tenants import Holder, TenantStore
from ops.cli import _run
from ops.tenant_cli import app
from tests.redis_server import RedisServer

Command = Callable[..., str]


@pytest.fixture
def command(
    redis_server: RedisServer, namespace: str, capsys: pytest.CaptureFixture[str]
) -> Command:
    def run(*arguments: str, code: int = 0) -> str:
        where = ("--redis-url", redis_server.url, "--namespace", namespace)
        assert _run(["tenant", *arguments, *where]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def find(redis_server: RedisServer, namespace: str, text: str) -> Holder | None:
    async def look() -> Holder | None:
        client: Redis
        async with connect(redis_server.url) as client:
            key = parse_api_key(text.strip())
            assert key is not None
            holder = await TenantStore(client, namespace).find(key.id)
            assert holder is None or holder.key.matches(key)
            return holder

    return asyncio.run(look())


def test_a_tenants_life(command: Command, redis_server: RedisServer, namespace: str) -> None:
    first = command("add", "acme", "--requests-per-minute", "60", "--weight", "2", "--admin")
    holder = find(redis_server, namespace, first)
    assert holder is not None
    assert holder.tenant.limits.requests_per_minute == 60
    assert holder.tenant.is_admin
    second = command("key", "acme")
    (shown,) = json.loads(command("list", "--json"))
    assert [key["id"] for key in shown["keys"]] == [first.split("-")[1], second.split("-")[1]]
    assert first.split("-")[2].strip() not in command("list", "--json")
    assert "acme" in command("list")
    command("key", "acme", "--remove", first.split("-")[1])
    assert find(redis_server, namespace, first) is None
    command("limits", "acme", "--requests-per-minute", "0", "--cache-group", "g", "--no-admin")
    holder = find(redis_server, namespace, second)
    assert holder is not None
    assert holder.tenant.limits.requests_per_minute is None
    assert holder.tenant.limits.weight == 2
    assert holder.tenant.cache_group == "g"
    assert not holder.tenant.is_admin
    command("remove", "acme")
    assert find(redis_server, namespace, second) is None
    assert json.loads(command("list", "--json")) == []


def test_mistakes_are_told_in_a_line(command: Command) -> None:
    command("add", "acme")
    assert "exists" in command("add", "acme", code=1)
    assert "there are: acme" in command("key", "other", code=1)
    assert "does not exist" in command("remove", "other", code=1)
    assert "it has: " in command("key", "acme", "--remove", "0" * 16, code=1)
    assert "name: got 'Big Corp'" in command("add", "Big Corp", code=2)
    assert "weight: got 0.0" in command("limits", "acme", "--weight", "0", code=2)


def test_the_help_names_all_commands() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert all(name in shown for name in ("add", "list", "key", "remove", "limits"))
