"""The servers that a cluster starts for itself, and what settings learn of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from cluster.redis_client import connect
from cluster.settings import Settings, load_settings
from ops.failure import CommandError
from ops.serve_redis import OwnRedis
from tests.cluster.test_redis_server import free_port
from tests.e2e.patience import eventually

_CACHE = {"max_bytes": 16 * 1024**2}


@asynccontextmanager
async def running(settings: Settings, directory: Path) -> AsyncIterator[OwnRedis]:
    redis = OwnRedis(settings, directory)
    await redis.start()
    try:
        yield redis
    finally:
        await redis.stop()


async def test_two_servers_of_which_only_that_of_prefixes_is_bounded(tmp_path: Path) -> None:
    settings = load_settings(engine={"redis_cache": _CACHE})
    async with running(settings, tmp_path) as redis:
        filled = redis.with_urls(settings)
        cluster, cache = filled.redis.url, filled.engine.redis_cache.url
        assert cluster is not None
        assert cache is not None
        async with connect(cluster) as client:
            assert (await client.config_get("maxmemory"))["maxmemory"] == "0"
            await client.set("a", "1")
        async with connect(cache) as client:
            found = await client.config_get("maxmemory*")
            assert found["maxmemory"] == str(_CACHE["max_bytes"])
            assert found["maxmemory-policy"] == "allkeys-lru"
            assert await client.get("a") is None


async def test_where_others_can_join_both_ask_for_a_password(tmp_path: Path) -> None:
    settings = load_settings(
        ray={"node_address": "127.0.0.1"},
        redis={"port": free_port()},
        engine={"redis_cache": _CACHE | {"port": free_port()}},
    )
    async with running(settings, tmp_path) as redis:
        filled = redis.with_urls(settings)
        urls = [filled.redis.url, filled.engine.redis_cache.url]
        ports = [settings.redis.port, settings.engine.redis_cache.port]
        passwords = set()
        for url, port in zip(urls, ports, strict=True):
            assert url is not None
            password, _, address = url.removeprefix("redis://:").partition("@")
            assert address == f"127.0.0.1:{port}"
            passwords.add(password)
            async with connect(url) as client:
                await client.ping()
        assert len(passwords) == 2


async def test_one_that_ends_is_started_again_where_it_was(tmp_path: Path) -> None:
    settings = load_settings(engine={"redis_cache": _CACHE})
    async with running(settings, tmp_path) as redis:
        keeping = asyncio.create_task(redis.keep())
        filled = redis.with_urls(settings)
        for url in (filled.redis.url, filled.engine.redis_cache.url):
            assert url is not None
            async with connect(url) as client:
                pid = (await client.info("server"))["process_id"]
                await client.shutdown(nosave=True)
            await eventually(partial(_is_another, url, pid), "it is started again")
        assert not keeping.done()
        keeping.cancel()
        await asyncio.wait([keeping])


async def _is_another(url: str, pid: int) -> bool:
    async with connect(url) as client:
        with suppress(OSError, RedisError):
            return int((await client.info("server"))["process_id"]) != pid
    return False


@pytest.mark.parametrize("started", [None, _CACHE])
async def test_a_rollout_gets_no_other_server(
    tmp_path: Path, started: dict[str, Any] | None
) -> None:
    settings = load_settings(engine={"redis_cache": started or {}})
    redis = OwnRedis(settings, tmp_path)
    wanted = load_settings(engine={"redis_cache": {"max_bytes": 32 * 1024**2}})
    with pytest.raises(CommandError, match=r"engine\.redis_cache\.max_bytes: got 33554432"):
        redis.with_urls(wanted)
    # Doing without is always possible, and so is a server that somebody else runs.
    assert redis.with_urls(load_settings()).engine.redis_cache.url is None
    other = load_settings(engine={"redis_cache": {"url": "redis://x"}})
    assert redis.with_urls(other).engine.redis_cache.url == "redis://x"
