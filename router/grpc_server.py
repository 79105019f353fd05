"""The gRPC server of a router."""

from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from trunkline.v1 import admin_pb2, inference_pb2
from trunkline.v1.admin_pb2_grpc import add_AdminServicer_to_server
from trunkline.v1.inference_pb2_grpc import add_InferenceServicer_to_server

from router.address import authority
from router.admin_servicer import GrpcAdmin
from router.grpc_servicer import GrpcInference
from router.inference import InferenceService

INFERENCE: Final = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
ADMIN: Final = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name


class GrpcServer:
    """Serves Inference, Admin, grpc.health.v1 and reflection."""

    def __init__(
        self,
        service: InferenceService,
        admin: GrpcAdmin,
        *,
        max_message_bytes: int,
        shares_port: bool,
        stall_s: float,
    ) -> None:
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", max_message_bytes),
                # Where two routers have one port, each gets some of the connections.
                ("grpc.so_reuseport", int(shares_port)),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            )
        )
        add_InferenceServicer_to_server(GrpcInference(service, stall_s), self._server)
        add_AdminServicer_to_server(admin, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (INFERENCE, ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self, host: str, port: int) -> int:
        """Listen, with port 0 on a free one; returns the port. Raises RuntimeError if taken."""
        await self.set_serving(False)
        bound = self._server.add_insecure_port(authority(host, port))
        await self._server.start()
        return bound

    async def set_serving(self, serving: bool) -> None:
        """What health checks are told."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        await self._health.set("", status)
        await self._health.set(INFERENCE, status)

    async def stop(self, grace_s: float) -> None:
        """Take no calls any more, and cancel those that take longer than `grace_s`."""
        await self._server.stop(grace_s)
