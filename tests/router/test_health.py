"""What load balancers, Prometheus and people with tools see of a router."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from trunkline.v1 import inference_pb2 as pb

from cluster.registry import Registry
from tests.router.conftest import ReplicaMaker
from tests.router.fake_replica import FakeReplica
from tests.router.harness import Client, running_router

INFERENCE = "trunkline.v1.Inference"
ADMIN = "trunkline.v1.Admin"


async def test_serving_begins_with_the_first_model(
    registry: Registry, make_replica: ReplicaMaker
) -> None:
    async with running_router(registry) as client:
        stub: Any = health_pb2_grpc.HealthStub(client.channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=INFERENCE))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await make_replica("replica-0")
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


async def test_reflection_lists_the_services(client: Client) -> None:
    channel: Any = client.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = (await call.read()).list_services_response.service
    assert {INFERENCE, ADMIN, "grpc.health.v1.Health"} <= {service.name for service in listed}
    call.cancel()


async def test_metrics_count_what_has_happened(client: Client, replica: FakeReplica) -> None:
    await client.generate(n=2)
    with_model = {"model": "tiny"}
    assert client.metric("trunkline:generation_tokens_total", **with_model) == 8
    assert client.metric("trunkline:cached_prompt_tokens_total", **with_model) == 2
    assert client.metric("trunkline:time_to_first_token_seconds_count", **with_model) == 1
    assert client.metric("trunkline:e2e_request_latency_seconds_count", **with_model) == 1
    assert client.metric("trunkline:replicas_ready", **with_model) == 1
    finished = client.metric(
        "trunkline:samples_finished_total", model="tiny", finish_reason="length"
    )
    assert finished == 2


async def test_models_that_do_not_exist_are_no_labels(client: Client) -> None:
    for number in range(3):
        call = client.stub.Generate(pb.GenerateRequest(model=f"made-up-{number}", prompt="x"))
        assert await call.code() is grpc.StatusCode.NOT_FOUND
    assert client.metric("trunkline:requests_failed_total", model="", reason="MODEL_NOT_FOUND") == 3
