"""What can be seen of a cluster from outside, once its run file is known."""

from collections.abc import Mapping
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cluster.redis_client import connect
from cluster.registry import Registry, ReplicaRecord
from ops.serve_run_file import RunFile


class ServedCluster:
    """A cluster that some `trunkline serve` runs; `read_run_file` comes first."""

    def read_run_file(self, path: Path) -> None:
        """Learn where it is found."""
        self.run = RunFile.model_validate_json(path.read_text())
        self.grpc, self.http = self.run.grpc_address, f"http://{self.run.http_address}"

    async def replicas(self) -> list[ReplicaRecord]:
        """What the registry holds."""
        async with connect(self.run.redis_url) as redis:
            return await Registry(redis, self.run.namespace).replicas()

    async def metrics(self, name: str, **labels: str) -> list[float]:
        """The metric of this name, and with these labels, of each replica, in the order of their
        epochs."""
        records = sorted(await self.replicas(), key=lambda record: record.epoch)
        async with httpx.AsyncClient() as http:
            pages = [await http.get(f"http://{r.metrics_address}/metrics") for r in records]
        return [_value(page.text, f"trunkline_replica_{name}", labels) for page in pages]

    async def is_idle(self) -> bool:
        """Whether no replica has anything to do or holds any block."""
        names = ("running_sequences", "waiting_requests", "cache_usage_ratio")
        return all([not any(await self.metrics(name)) for name in names])

    async def num_ready(self) -> int:
        """Replicas that the router can send requests to."""
        return await self.router_metric("replicas_ready")

    async def num_queued(self) -> int:
        """Requests that wait in the router."""
        return await self.router_metric("queue_length")

    async def router_metric(self, name: str) -> int:
        """The value of this metric of the router, for its only model."""
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{self.http}/metrics")).text
        return int(_value(text, f"trunkline:{name}", {}))

    async def has_ready(self, count: int) -> bool:
        """Whether the router can send requests to so many replicas, no more and no fewer."""
        return await self.num_ready() == count == len(await self.replicas())

    async def has_replaced(self, pid: int) -> bool:
        """Whether two replicas serve, neither of which is the one that had this process."""
        pids = {record.pid for record in await self.replicas()}
        return pid not in pids and await self.has_ready(2)


def _value(text: str, name: str, labels: Mapping[str, str]) -> float:
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == name else ():
            if labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"no metric {name} {labels}")
