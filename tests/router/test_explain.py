"""Every choice of a replica can be explained by the id of its request, on every router."""

import asyncio
from random import Random
from typing import Any

import grpc
import httpx
import pytest
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import admin_pb2 as admin
from trunkline.v1.admin_pb2_grpc import AdminStub

from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.events import joined
from cluster.registry import Registry
from router.decisions import Decisions
from router.metrics import Metrics
from router.policies.least_loaded import LeastLoaded
from router.policies.prefix import PrefixAware
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica, Script
from tests.router.harness import Client, eventually, running_router
from tests.router.policies.fleet_fixture import replicas, request

PROMPT = "a prompt that is longer than one block of sixteen tokens, and is asked again"


async def explain(client: Client, request_id: str) -> list[admin.Decision]:
    stub: Any = AdminStub(client.channel)
    answer = await stub.Explain(admin.ExplainRequest(request_id=request_id))
    return list(answer.decisions)


async def test_a_choice_is_explained_with_every_candidates_cost(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    other = await make_replica("replica-1")
    replica.load.prefill_tokens_per_s = other.load.prefill_tokens_per_s = 1000.0
    other.load.queued_prefill_tokens = 500
    await client.until_ready(2)
    await eventually(lambda: _is_chosen(client, replica))
    (decision,) = await explain(client, "probe")
    assert (decision.cause, decision.policy, decision.model) == ("new", "prefix", "tiny")
    assert decision.chosen == replica.record.member
    costs = {cost.replica: cost for cost in decision.candidates}
    assert set(costs) == {replica.record.member, other.record.member}
    for cost in costs.values():
        parts = cost.queue_ms + cost.prefill_ms + cost.fetch_ms + cost.decode_ms + cost.work_ms
        assert cost.total_ms == pytest.approx(parts)
    assert costs[other.record.member].queue_ms == pytest.approx(500.0)


def test_what_has_to_be_fetched_from_host_memory_is_explained() -> None:
    decisions, fleet = Decisions("router", "prefix", Metrics()), replicas(1000.0, 1000.0)
    fleet[0].report(rate=1000.0, fetch=10_000.0)
    directory, wanted = PrefixDirectory(100), request(range(100))
    for replica in fleet:
        directory.trust(replica.member)
        directory.store(replica.member, joined(wanted.block_hashes[:4]))
    directory.lower(fleet[0].member, joined(wanted.block_hashes[3:]))
    choice = PrefixAware(Random(1), directory).choose(wanted, fleet)
    decisions.record(wanted, "new", fleet, choice)
    first, second = decisions.of_request("r")[0].candidates
    assert (first.cached_tokens, first.fetchable_tokens) == (48, 48)
    assert (second.cached_tokens, second.fetchable_tokens) == (64, 0)
    assert (first.prefill_ms, second.prefill_ms) == (4.0, 36.0)
    assert [first.fetch_ms, second.fetch_ms] == pytest.approx([4.8, 0.0])
    for cost in (first, second):
        parts = cost.queue_ms + cost.prefill_ms + cost.fetch_ms + cost.decode_ms + cost.work_ms
        assert cost.total_ms == pytest.approx(parts)


async def _is_chosen(client: Client, replica: FakeReplica) -> bool:
    """Whether the router has heard of both rates, and goes by them."""
    await client.generate("x", request_id="warm-up")
    decision = (await explain(client, "warm-up"))[-1]
    if not all(cost.prefill_tokens_per_s for cost in decision.candidates):
        return False
    await client.generate("x", request_id="probe")
    return True


async def test_each_try_is_a_decision_with_its_cause(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry, policy="round_robin") as client:
        first, _ = [await make_replica(name) for name in ("replica-a", "replica-b")]
        await client.until_ready(2)
        first.script = Script(fail_with=internal.Failed(cause=internal.Failed.CAUSE_REFUSED))
        await client.generate(request_id="tried-twice")
        causes = [decision.cause for decision in await explain(client, "tried-twice")]
        assert causes == ["new", "refused"]


async def test_http_clients_ask_by_the_id_that_they_see(client: Client) -> None:
    async with httpx.AsyncClient(base_url=f"http://{client.addresses['http']}") as http:
        body = {"model": "tiny", "prompt": ["one", "two"], "max_tokens": 2}
        answer = await http.post("/v1/completions", json=body, headers={"x-request-id": "named"})
    for request_id in (answer.json()["id"], "named"):
        assert len(await explain(client, request_id)) == 2


async def test_nothing_is_known_of_a_request_that_never_came(client: Client) -> None:
    assert await explain(client, "never-came") == []


async def test_a_request_has_to_be_named(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await explain(client, "")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_choices_are_counted_by_what_they_went_by(client: Client) -> None:
    await client.generate(PROMPT)
    await client.generate(PROMPT)
    labels = {"model": "tiny", "policy": "prefix"}
    bases = ("consistent_hash", "dispatch_memory")
    counts = [
        client.metric("trunkline:routing_decisions_total", **labels, basis=basis) for basis in bases
    ]
    assert counts == [1, 1]


def test_only_the_last_decisions_are_kept() -> None:
    decisions, fleet = Decisions("router", "least_loaded", Metrics()), replicas(0.0)
    wanted = request([1])
    choice = LeastLoaded(Random(1)).choose(wanted, fleet)
    for _ in range(5000):
        decisions.record(wanted, "new", fleet, choice)
    assert len(decisions.of_request("r")) == 4096


async def test_routers_are_found_in_the_registry_until_they_drain(
    registry: Registry, replica: FakeReplica
) -> None:
    async with running_router(registry) as one, running_router(registry) as two:
        await eventually(lambda: _num_routers(registry, 2))
        found = {record.grpc_address for record in await registry.routers()}
        assert found == {one.addresses["grpc"], two.addresses["grpc"]}
    assert await registry.routers() == []


async def _num_routers(registry: Registry, count: int) -> bool:
    return len(await registry.routers()) == count


async def test_equal_prefixes_converge_on_one_replica_in_a_burst(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    fleet = [replica, await make_replica("replica-1"), await make_replica("replica-2")]
    for each in fleet:
        each.load.prefill_tokens_per_s = 1000.0
        each.script = Script(pause_after=0)
    await client.until_ready(3)
    calls = [asyncio.create_task(client.generate(PROMPT + str(i))) for i in range(4)]
    await eventually(lambda: _num_submits(fleet, 4))
    assert sorted(len(each.submits) for each in fleet) == [0, 0, 4]
    for each in fleet:
        each.resume.set()
    await asyncio.gather(*calls)


async def _num_submits(fleet: list[FakeReplica], count: int) -> bool:
    return sum(len(each.submits) for each in fleet) == count


async def test_rates_that_replicas_report_draw_requests_to_the_faster(
    client: Client, replica: FakeReplica, make_replica: ReplicaMaker
) -> None:
    fast = await make_replica("replica-1")
    replica.load.prefill_tokens_per_s, fast.load.prefill_tokens_per_s = 100.0, 1000.0
    await client.until_ready(2)
    await eventually(lambda: _is_chosen(client, fast))
    for each in (replica, fast):
        each.submits.clear()
        each.script = Script(pause_after=0)
    calls = [asyncio.create_task(client.generate(f"{i} short")) for i in range(11)]
    await eventually(lambda: _num_submits([replica, fast], 11))
    assert len(fast.submits) >= 9
    for each in (replica, fast):
        each.resume.set()
    await asyncio.gather(*calls)
