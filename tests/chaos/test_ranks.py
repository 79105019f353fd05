"""A rank of a replica dies while it answers: no client sees anything of it."""

from collections.abc import Iterator

import psutil
import pytest

from tests.chaos.settings import SETTINGS
from tests.chaos.streams import streaming
from tests.e2e.cluster import Cluster, serving
from tests.e2e.patience import eventually
from tests.e2e.shards import shard_of


@pytest.fixture(scope="module")
def ranked() -> Iterator[Cluster]:
    """Two replicas of two ranks each."""
    engine = SETTINGS["engine"] | {"parallel": {"tensor": 2}}
    with serving("demo", SETTINGS | {"engine": engine}) as running:
        yield running


async def test_a_shard_is_killed(ranked: Cluster) -> None:
    async with streaming(ranked):
        leader = psutil.Process((await ranked.replicas())[0].pid)
        shard_of(ranked, leader).kill()
    await eventually(lambda: ranked.has_replaced(leader.pid), "the replica is replaced")
