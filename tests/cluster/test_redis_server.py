"""The private Redis: it answers, keeps nothing, says why it fails, and ends with its parent."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis.exceptions import AuthenticationError

from cluster.redis_client import connect, without_password
from cluster.redis_server import RedisServer
from tests.cluster.redis_fixture import running_redis

_PARENT = """
import asyncio, signal, sys
from pathlib import Path
from cluster.redis_server import RedisServer

async def main():
    server = RedisServer(Path(sys.argv[1]))
    await server.start()
    print(server._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_it_answers_and_leaves_no_file_behind(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (_, client):
        await client.set("a", "1")
        assert await client.get("a") == b"1"
    assert set(os.listdir(tmp_path)) <= {"redis.log", "redis.sock"}


async def test_kept_it_comes_back_empty_after_a_crash(tmp_path: Path) -> None:
    async with running_redis(tmp_path) as (server, client):
        await client.set("a", "1")
        process = server._process
        assert process is not None
        process.kill()
        await process.wait()
        await server.start()
        assert await client.get("a") is None


async def test_one_that_is_full_has_room_for_what_comes(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, max_bytes=8 * 1024**2)
    await server.start()
    try:
        async with connect(server.url) as client:
            for key in range(64):
                await client.set(str(key), bytes(256 * 1024))
            assert 2 < await client.dbsize() < 32
            assert await client.exists("63")
            assert (await client.info("memory"))["used_memory"] < 10 * 1024**2
    finally:
        await server.stop()


async def test_what_keeps_it_from_starting_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer than 107 bytes"):
        await RedisServer(tmp_path / ("d" * 107)).start()
    tmp_path.joinpath("redis.sock").mkdir()
    with pytest.raises(RuntimeError, match=r"ended at once: .*Address already in use"):
        await RedisServer(tmp_path).start()


def test_it_is_killed_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    assert "redis-server" in server.name()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    _, alive = psutil.wait_procs([server], timeout=30)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


async def test_at_an_address_it_takes_its_password_alone(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, ("127.0.0.1", free_port()))
    await server.start()
    try:
        async with connect(server.url) as client:
            await client.set("a", "1")
        stranger = "redis://" + server.url.rpartition("@")[2]
        for url in (stranger, stranger.replace("//", "//:wrong@")):
            async with connect(url) as client:
                with pytest.raises(AuthenticationError):
                    await client.get("a")
        password = server.url.split(":")[2].partition("@")[0]
        # Other tests' servers are among them.
        servers = [p for p in psutil.Process().children() if "redis-server" in p.name()]
        assert servers
        assert not any(password in word for process in servers for word in process.cmdline())
        assert without_password(server.url) == "redis://:***@" + server.url.rpartition("@")[2]
    finally:
        await server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_urls_of_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        connect("http://localhost")
