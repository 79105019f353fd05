"""A cluster of two hosts: each serves, either may be lost, and comes back.

One cluster for all tests, in their order. The second host has room for one replica, and so has the
head; two are wanted.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.patience import eventually
from tests.e2e.settings import ENGINE
from tests.multinode.cluster import HeadCommand, TwoHosts, failure, leaders, other_version
from tests.multinode.hosts import Host
from tests.multinode.traffic import NUM_CLIENTS, traffic

SETTINGS = {
    "engine": ENGINE,
    "replica": {"count": 2, "num_cpus": 1},
    "ray": {"num_cpus": 1},
    "router": {"replica_silence_s": 3.0},
}


@pytest.fixture(scope="module")
def cluster(hosts: list[Host]) -> Iterator[TwoHosts]:
    yield TwoHosts(hosts, SETTINGS)
    for host in hosts:
        host.kill()


def test_who_may_not_join_is_told_why(cluster: TwoHosts) -> None:
    second, address = cluster.second, cluster.join_arguments[2]
    nobody = f"{cluster.first.address}:1"
    token = {"TRUNKLINE_JOIN_TOKEN": "f" * 64}
    code, said = failure(second, "node", "--join", nobody, environment=token)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith(f"trunkline: {nobody} cannot be reached: ")

    wrong = failure(second, "node", "--join", address, environment=token)
    assert wrong == (1, f"trunkline: {address}: the token is not the one of its cluster\n")

    right = {"TRUNKLINE_JOIN_TOKEN": Path(cluster.join_arguments[4]).read_text().strip()}
    with other_version(cluster.head, address, right):
        code, said = failure(second, *cluster.join_arguments, environment={})
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith(f"trunkline: {address} runs Trunkline 0.0.1 ")
    assert cluster.head.process.poll() is None


async def test_each_host_takes_a_replica_and_both_answer(cluster: TwoHosts) -> None:
    cluster.join()
    cluster.head.wait_ready()
    await eventually(cluster.both_serve, "both hosts serve")
    async with traffic(cluster.head.grpc) as going:
        await eventually(lambda: have_generated(cluster.head, 2), "both replicas have answered")
    assert going.num_lost == 0


async def have_generated(head: HeadCommand, count: int) -> bool:
    generated = await head.metrics("generated_tokens")
    return len(generated) == count and all(generated)


async def test_our_servers_listen_at_the_hosts_own_addresses(cluster: TwoHosts) -> None:
    run = cluster.head.run
    ours = {run.grpc_address, run.http_address, run.redis_url.rpartition("@")[2]}
    for record in await cluster.head.replicas():
        ours |= {record.address, record.metrics_address}
    assert len(ours) == 7
    for host in (cluster.first, cluster.second):
        listening = host.listening()
        for address, port in (text.split(":") for text in ours):
            if address == host.address:
                assert (address, int(port)) in listening
                assert ("*", int(port)) not in listening


async def test_a_host_that_dies(cluster: TwoHosts) -> None:
    """What it was answering is lost, all else is answered; the other host goes on alone."""
    async with traffic(cluster.head.grpc) as going:
        await going.answered(4)
        cluster.second.kill()
        cluster.second.clear()
        await eventually(cluster.first_serves_alone, "the first host serves alone")
        await going.answered(20)
    # Each client has at most one request at a time, and its next one goes elsewhere.
    assert going.num_lost <= NUM_CLIENTS


async def test_a_host_that_joins_later_gets_a_replica(cluster: TwoHosts) -> None:
    before = {record.epoch for record in await cluster.head.replicas()}
    cluster.join()
    await eventually(cluster.both_serve, "both hosts serve again")
    assert {record.epoch for record in await cluster.head.replicas()} > before


async def test_a_cable_that_is_cut(cluster: TwoHosts) -> None:
    """Nobody waits for the host that does not answer; it joins again when it can, as a new one."""
    [old] = leaders(cluster.second)
    async with traffic(cluster.head.grpc) as going:
        await going.answered(4)
        cluster.second.cut()
        await eventually(cluster.first_serves_alone, "the first host serves alone")
        await going.answered(20)
    assert going.num_lost <= NUM_CLIENTS
    cluster.second.mend()
    await asyncio.to_thread(cluster.node.wait_said, "out of the cluster: ")
    assert old not in leaders(cluster.second)
    await eventually(cluster.both_serve, "both hosts serve again")
    assert {p.pid for p in leaders(cluster.second)} == {
        record.pid
        for record in await cluster.head.replicas()
        if record.address.startswith(f"{cluster.second.address}:")
    }


async def test_a_host_that_leaves_finishes_its_requests(cluster: TwoHosts) -> None:
    async with traffic(cluster.head.grpc) as going:
        await going.answered(4)
        assert await asyncio.to_thread(cluster.node.leave) == 0
        await eventually(cluster.first_serves_alone, "the first host serves alone")
        await going.answered(4)
    assert going.num_lost == 0
    assert traces(cluster.second) == []


def test_the_head_ends(cluster: TwoHosts) -> None:
    assert cluster.head.leave() == 0
    assert traces(cluster.first) == []


def traces(host: Host) -> list[str]:
    """What commands have left of their files: of a clean end there is nothing."""
    return [path.name for path in host.directory.glob("trunkline-*/**/*") if path.is_file()]
