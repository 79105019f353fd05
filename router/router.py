"""One router, put together."""

import asyncio
import socket
import time
import uuid
from collections.abc import Callable
from functools import partial
from random import Random

import structlog

from cluster.catalog import CatalogStore
from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.follower import PrefixFollower
from cluster.registry import Registry, ReplicaRecord, RouterRecord
from cluster.reservations import Reservations
from cluster.settings import RouterSettings
from cluster.tenants import TenantStore
from router.address import authority
from router.admin_servicer import GrpcAdmin
from router.admission import Admission
from router.auth import Authenticator
from router.catalog.follower import CatalogFollower
from router.catalog.models import Models
from router.decisions import Decisions
from router.dispatch import DispatchTools
from router.embedder import Embedder
from router.fleet.breaker import Breaker, BreakerState
from router.fleet.fleet import Fleet
from router.fleet.load_estimate import LoadEstimate
from router.fleet.replica_link import ReplicaLink
from router.fleet.replica_set import ReplicaSet
from router.fleet.served_model import ServedModel
from router.fleet.shared_load import SharedLoad
from router.gate import Gate
from router.grpc_server import GrpcServer
from router.http_server import HttpServer
from router.inference import InferenceService
from router.metrics import Metrics
from router.policies import POLICIES
from router.queue.queues import Queues
from router.quota import Quota
from router.response_cache.response_cache import ResponseCache
from router.response_cache.semantic_cache import SemanticCache
from router.retry_budget import RetryBudget
from router.router_lease import RouterLease

log = structlog.get_logger(__name__)

_FLUSH_S = 2.0
_CANCEL_AGAIN_S = 0.1
_BEING_ADMITTED = 256
"""Requests whose keys, prompts and quotas are being looked at."""
_FRAMING_BYTES = 64 * 1024
"""Room for what surrounds a prompt in a message."""


class Router:
    """The servers, and what they stand on: `start`, then `serve_until`."""

    def __init__(self, settings: RouterSettings, registry: Registry) -> None:
        self._settings = settings
        self._router_id = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self.metrics = Metrics()
        self._gate = Gate(settings.max_in_flight + settings.max_queued + _BEING_ADMITTED)
        self._registry = registry
        self._decisions = Decisions(self._router_id, settings.policy, self.metrics)
        follower = PrefixFollower(
            registry.redis,
            registry.namespace,
            on_gap=self.metrics.fleet.prefix_gaps.inc,
            on_resync=self.metrics.fleet.prefix_resyncs.inc,
        )
        self._fleet = Fleet(registry, follower, self._make_replicas, self._on_model)
        self._auth = Authenticator(
            TenantStore(registry.redis, registry.namespace),
            require_api_key=settings.require_api_key,
        )
        self._quota = Quota(registry.redis, registry.namespace, self.metrics.quota_away.inc)
        self._queues = Queues(settings, self.metrics)
        admission = Admission(self._quota, self._queues)
        self._catalog = CatalogFollower(CatalogStore(registry.redis, registry.namespace))
        self._responses = ResponseCache(
            registry.redis, registry.namespace, settings.response_cache, self.metrics
        )
        budget = RetryBudget(settings.retry_share, settings.retry_burst)
        tools = DispatchTools(self.metrics, budget, settings)
        self._semantic = SemanticCache(
            registry.redis,
            registry.namespace,
            settings.semantic_cache,
            settings.response_cache,
            self._fleet.find,
            Embedder(tools),
            self.metrics,
        )
        service = InferenceService(
            self._fleet,
            self._auth,
            self._gate,
            admission,
            self._responses,
            self._semantic,
            Models(self._fleet, self._catalog),
            tools,
        )
        self._shared_load = SharedLoad(
            Reservations(registry.redis, registry.namespace, self._router_id),
            lambda: self._fleet.estimates,
            self.metrics.fleet.load_exchange_failures,
        )
        self._grpc, self._http = self._make_servers(service)
        self.metrics.requests_in_flight.set_function(lambda: self._gate.in_flight)
        self.metrics.fleet.registry_age.set_function(lambda: self._fleet.age_s)
        self.metrics.fleet.prefix_age.set_function(lambda: follower.age_s)
        self.metrics.catalog_age.set_function(lambda: self._catalog.age_s)

    async def start(self) -> dict[str, str]:
        """Listen; returns where, by protocol.

        Raises OSError or RuntimeError if an address cannot be had.
        """
        host = self._settings.host
        grpc_port = await self._grpc.start(host, self._settings.grpc_port)
        http_port = self._http.start(host, self._settings.http_port)
        if self._settings.metrics_port is not None:
            self.metrics.serve(host, self._settings.metrics_port)
        addresses = {"grpc": authority(host, grpc_port), "http": authority(host, http_port)}
        self._record = RouterRecord(
            router_id=self._router_id,
            grpc_address=addresses["grpc"],
            http_address=addresses["http"],
            started_at=time.time(),
        )
        log.info("router is listening", router=self._router_id, **addresses)
        return addresses

    async def serve_until(self, told_to_stop: asyncio.Event) -> None:
        """Serve until the event is set, then drain and end.

        Raises what has stopped the router from following the cluster, if anything has.
        """
        telling = asyncio.create_task(told_to_stop.wait(), name="told to stop")
        lease = RouterLease(self._registry, self._record)
        entering = asyncio.create_task(lease.run(), name="router lease")
        sharing = asyncio.create_task(self._shared_load.run(), name="shared load")
        following = asyncio.create_task(self._fleet.run(), name="fleet")
        leasing = asyncio.create_task(self._quota.run(), name="quota leases")
        naming = asyncio.create_task(self._catalog.run(), name="catalog")
        tasks = (entering, sharing, following, leasing, naming)
        done, _ = await asyncio.wait({telling, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        telling.cancel()
        # Again and again: Redis's client loses a cancellation that comes while it connects.
        while entering.cancel():
            await asyncio.wait({entering}, timeout=_CANCEL_AGAIN_S)
        await lease.end()
        await self._drain()
        for task in tasks:
            task.cancel()
        await self._quota.close()
        await self._responses.close()
        await self._semantic.close()
        await self._fleet.close()
        self.metrics.close()
        log.info("router has stopped")
        for ended in done & set(tasks):
            ended.result()

    async def _drain(self) -> None:
        """Refuse new requests, and let those under way finish within the drain timeout."""
        self._gate.close()
        self._queues.close()
        await self._grpc.set_serving(False)
        log.info("router is draining", in_flight=self._gate.in_flight)
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._gate.drained()
        except TimeoutError:
            log.warning("requests are cut off", in_flight=self._gate.in_flight)
        await asyncio.gather(self._grpc.stop(_FLUSH_S), self._http.stop())

    def _make_servers(self, service: InferenceService) -> tuple[GrpcServer, HttpServer]:
        settings = self._settings
        max_message_bytes = settings.max_prompt_bytes + _FRAMING_BYTES
        stall_s, shares_port = settings.client_stall_s, settings.processes > 1
        grpc_server = GrpcServer(
            service,
            GrpcAdmin(self._decisions, self._auth),
            max_message_bytes=max_message_bytes,
            stall_s=stall_s,
            shares_port=shares_port,
        )
        http_server = HttpServer(
            service,
            self.metrics,
            max_body_bytes=max_message_bytes,
            stall_s=stall_s,
            shares_port=shares_port,
        )
        return grpc_server, http_server

    def _make_replicas(self) -> ReplicaSet:
        prefixes = PrefixDirectory(self._settings.max_index_blocks)
        policy = POLICIES[self._settings.policy](Random(), prefixes)
        return ReplicaSet(policy, self._make_link, self._decisions, prefixes)

    def _make_link(
        self, record: ReplicaRecord, estimate: LoadEstimate, on_change: Callable[[], None]
    ) -> ReplicaLink:
        silence_s = self._settings.replica_silence_s
        breaker = Breaker(self._settings.breaker_failures, self._settings.breaker_cooldown_s)
        return ReplicaLink(record, estimate, breaker, self._router_id, silence_s, on_change)

    async def _on_model(self, model: ServedModel) -> None:
        metrics, name, prefixes = self.metrics.fleet, model.name, model.prefixes
        metrics.replicas_ready.labels(name).set_function(lambda: model.replicas.num_ready)
        for state in BreakerState:
            breakers = metrics.breakers.labels(name, state.name.lower())
            breakers.set_function(partial(model.replicas.num_in_state, state))
        metrics.prefix_blocks.labels(name).set_function(lambda: prefixes.num_blocks)
        metrics.prefix_expected.labels(name).set_function(lambda: prefixes.num_expected)
        metrics.prefix_replicas.labels(name).set_function(lambda: len(prefixes.known))
        await self._grpc.set_serving(self._gate.is_open)
