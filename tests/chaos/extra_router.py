"""A second router of a cluster."""

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import httpx
from trunkline import AsyncClient

from tests.e2e.patience import eventually
from tests.e2e.served_cluster import ServedCluster


class ExtraRouter:
    """A process `router.main`, at ports of its own."""

    def __init__(self, cluster: ServedCluster) -> None:
        settings = {
            "redis": {"url": cluster.run.redis_url, "namespace": cluster.run.namespace},
            "router": {"grpc_port": 0, "http_port": 0},
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "router.main", "--config-json", json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        self.address, self._http = told["grpc"], told["http"]

    @classmethod
    @asynccontextmanager
    async def running(cls, cluster: ServedCluster) -> AsyncIterator[Self]:
        """One that knows all replicas of the cluster."""
        router = cls(cluster)
        try:
            async with AsyncClient(router.address) as client:
                await eventually(lambda: _has_all(client, cluster), "the second router is ready")
            yield router
        finally:
            router.kill()

    async def num_in_flight(self) -> int:
        """Requests that it has accepted and not answered yet."""
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"http://{self._http}/metrics")).text
        [line] = [x for x in text.splitlines() if x.startswith("trunkline:requests_in_flight ")]
        return int(float(line.split()[1]))

    def kill(self) -> None:
        """End it without a word."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


async def _has_all(client: AsyncClient, cluster: ServedCluster) -> bool:
    num_replicas = len(await cluster.replicas())
    return [model.ready_replicas for model in await client.models()] == [num_replicas]
