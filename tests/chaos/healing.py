"""Whether everything is known again after something has happened to the cluster."""

import os
import uuid
from typing import Any

import grpc
from trunkline import AsyncClient
from trunkline.v1 import admin_pb2 as admin
from trunkline.v1.admin_pb2_grpc import AdminStub

from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually

_NUM_TOKENS = 128
"""Eight blocks."""


async def heals(cluster: Cluster) -> None:
    """Return when both replicas are known, what they have cached is known, and a request goes where
    the index knows its prefix to be."""
    await eventually(lambda: cluster.has_ready(2), "both replicas are known")
    await eventually(lambda: _knows_caches(cluster), "what both have cached is known")
    # One that nobody has asked for yet.
    prompt = [*os.urandom(_NUM_TOKENS), 1]
    async with AsyncClient(cluster.grpc) as client:
        first, cached = await _ask(client, cluster, prompt)
        assert (first.cause, cached) == ("new", 0)
        await eventually(lambda: _knows_caches(cluster), "the replica has told of the prompt")
        second, cached = await _ask(client, cluster, prompt)
    assert (second.chosen, second.basis) == (first.chosen, "index")
    assert cached == _NUM_TOKENS


async def _knows_caches(cluster: Cluster) -> bool:
    """Whether the index has the word of both replicas on everything that it was told to expect."""
    num_known = await cluster.router_metric("prefix_index_replicas")
    return (num_known, await cluster.router_metric("prefix_index_expected_blocks")) == (2, 0)


async def _ask(
    client: AsyncClient, cluster: Cluster, prompt: list[int]
) -> tuple[admin.Decision, int]:
    """Why a request for one token went where it did, and how much of its prompt was cached."""
    request_id = uuid.uuid4().hex
    stream = client.generate(prompt, max_tokens=1, ignore_eos=True, request_id=request_id)
    async for _ in stream:
        pass
    async with grpc.aio.insecure_channel(cluster.grpc) as channel:
        stub: Any = AdminStub(channel)
        answer = await stub.Explain(admin.ExplainRequest(request_id=request_id))
    [decision] = answer.decisions
    return decision, stream.usage.cached_prompt_tokens
