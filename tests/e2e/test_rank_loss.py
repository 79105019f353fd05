"""Replicas of several ranks that lose one of them: clients see no more of it than of the loss of a
replica, which is nothing.

`TRUNKLINE_TEST_ROUNDS=20` has every loss happen that often.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from trunkline import AsyncClient, RetryPolicy

from tests.e2e.cluster import Cluster, serving
from tests.e2e.patience import PATIENCE_S, eventually, wait_until
from tests.e2e.settings import ENGINE
from tests.e2e.shards import shard_of, shards
from tests.e2e.test_replica_loss import LongRequest, check_long

ROUNDS = int(os.environ.get("TRUNKLINE_TEST_ROUNDS", "1"))
NUM_REPLICAS = 2
NUM_LONG = 6
_SHORT: dict[str, Any] = {"max_tokens": 8, "seed": 4}

# Ray's own tables, which only a process of its cluster can read.
_PLACEMENT_GROUPS = """
import json, logging, sys, ray
from ray.util.placement_group import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print(json.dumps([group["state"] for group in placement_group_table().values()]))
"""


@pytest.fixture(scope="module", params=["tensor", "pipeline"])
def ranked(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two replicas of two ranks each; when all tests have harmed it, Ray has no more placement
    groups than at first."""
    settings: dict[str, Any] = {
        "engine": ENGINE | {"parallel": {request.param: 2}, "kv_cache_bytes": 64 * 1024 * 1024},
        # Serve gives a leader that hangs as long as one that drains.
        "replica": {"count": NUM_REPLICAS, "drain_timeout_s": 0.5},
    }
    with serving("demo-small", settings) as cluster:
        yield cluster
        wait_until(lambda: _placed(cluster) == NUM_REPLICAS, "old placement groups are given back")


class Traffic:
    """Streams that have begun on both replicas, and short requests that go on coming."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.longs = [LongRequest(asyncio.Event()) for _ in range(NUM_LONG)]
        self.answers: list[str] = []
        self._ended = asyncio.Event()

    async def start(self) -> None:
        self.expected = await self._client.generate("def main", **_SHORT).text()
        self._running = [asyncio.create_task(long.run(self._client)) for long in self.longs]
        await asyncio.gather(*(long.begun.wait() for long in self.longs))
        self._coming = asyncio.create_task(self._come())

    async def stop(self) -> None:
        """Raises what a short request has raised."""
        self._ended.set()
        await asyncio.gather(*self._running, self._coming)

    async def _come(self) -> None:
        while not self._ended.is_set():
            self.answers.append(await self._client.generate("def main", **_SHORT).text())


def _kill_shard(leader: psutil.Process, shard: psutil.Process) -> None:
    shard.kill()


def _stop_shard(leader: psutil.Process, shard: psutil.Process) -> None:
    """As a machine that hangs: its connections stay."""
    shard.send_signal(signal.SIGSTOP)


def _kill_leader(leader: psutil.Process, shard: psutil.Process) -> None:
    leader.kill()


def _stop_leader(leader: psutil.Process, shard: psutil.Process) -> None:
    """Ray Serve kills it when it has waited long enough for an answer."""
    leader.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("harm", [_kill_shard, _stop_shard, _kill_leader, _stop_leader])
@pytest.mark.parametrize("round_number", range(ROUNDS))
async def test_a_lost_rank(ranked: Cluster, harm: Any, round_number: int) -> None:
    """Its replica's requests go on elsewhere, a new epoch takes its place, and nothing of the old
    one is left."""
    await eventually(lambda: ranked.has_ready(NUM_REPLICAS), "all replicas serve")
    async with AsyncClient(ranked.grpc, retry=RetryPolicy(max_attempts=1)) as client:
        traffic = Traffic(client)
        await traffic.start()
        before = await ranked.replicas()
        lost = before[round_number % NUM_REPLICAS]
        leader = psutil.Process(lost.pid)
        shard = shard_of(ranked, leader)

        harmed_at = time.monotonic()
        harm(leader, shard)
        await eventually(lambda: _loses(ranked, lost.pid), "the replica takes no more requests")
        print(f"{harm.__name__}: noticed after {time.monotonic() - harmed_at:.1f} s")
        await eventually(lambda: ranked.has_replaced(lost.pid), "the replica is replaced")
        print(f"{harm.__name__}: replaced after {time.monotonic() - harmed_at:.1f} s")
        await traffic.stop()

    assert set(traffic.answers) == {traffic.expected}
    check_long(traffic.longs)
    after = await ranked.replicas()
    assert max(r.epoch for r in after) > max(r.epoch for r in before)
    wait_until(lambda: not _is_there(leader), "the old leader is gone")
    wait_until(lambda: not _is_there(shard), "the old shard is gone")
    assert len(shards(ranked)) == len(ranked.leaders()) == NUM_REPLICAS


async def _loses(cluster: Cluster, pid: int) -> bool:
    return await cluster.num_ready() < NUM_REPLICAS


def _is_there(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _placed(cluster: Cluster) -> int:
    """Placement groups that are not removed."""
    [raylet] = [p for p in cluster.processes() if p.name() == "raylet"]
    [address] = [a.split("=")[1] for a in raylet.cmdline() if a.startswith("--gcs-address=")]
    told = subprocess.run(
        [sys.executable, "-c", _PLACEMENT_GROUPS, address],
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
        env=raylet.environ(),
    )
    states = json.loads(told.stdout.splitlines()[-1])
    return len([state for state in states if state != "REMOVED"])
