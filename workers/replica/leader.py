"""The leader of a replica: its engine, its server, its lease, from start to drain."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import structlog
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import add_ReplicaServiceServicer_to_server

from cluster.loading import LoadingBoard
from cluster.node_host import node_host
from cluster.prefix.block_log import BlockLog
from cluster.prefix.publisher import PrefixPublisher
from cluster.redis_client import connect
from cluster.registry import Registry, ReplicaRecord
from cluster.settings import EngineSettings, Settings
from workers.replica.dispatch import Dispatch
from workers.replica.engine_thread import EngineDied, EngineHangs, EngineThread, StepReport
from workers.replica.lease import Lease, claim_epoch
from workers.replica.metrics import ReplicaMetrics
from workers.replica.progress import shown_progress
from workers.replica.servicer import ReplicaServicer
from workers.replica.step_engine import StepEngine

log = structlog.get_logger(__name__)

MakeEngine = Callable[[Path, EngineSettings, Callable[[int, int], None]], StepEngine]

_WATCH_PERIOD_S = 0.25
_MAX_FRAME_BYTES = 64 * 1024 * 1024
_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_FRAME_BYTES),
    ("grpc.max_send_message_length", _MAX_FRAME_BYTES),
    # A router whose host is gone sends no end of its stream; this finds out.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


class Leader:
    """One replica, in one process. All methods are called on one event loop."""

    def __init__(self, settings: Settings, replica_id: str, make_engine: MakeEngine) -> None:
        """Raises ValueError if `settings` do not say where Redis is."""
        if settings.redis.url is None:
            raise ValueError("redis.url: a replica needs the cluster's Redis, and none is set")
        self._settings = settings
        self._replica_id = replica_id
        self._make_engine = make_engine
        self._model_name = settings.model_name or Path(settings.model).name
        self._redis = connect(settings.redis.url)
        self._registry = Registry(self._redis, settings.redis.namespace)
        self._metrics = ReplicaMetrics(self._model_name, replica_id)
        self._opened = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._drained: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the model, then take traffic. Raises what loading raises; then nothing is left."""
        self._opened.push_async_callback(self._redis.aclose)
        try:
            epoch = await claim_epoch(self._registry)
            structlog.contextvars.bind_contextvars(epoch=epoch)
            await self._load(epoch)
            await self._open(epoch)
        except BaseException:
            await self._opened.aclose()
            raise

    def check(self) -> None:
        """Raise EngineDied if the replica is of no more use."""
        self._engine.check(self._settings.replica.max_step_s)
        for task in self._tasks:
            if task.done() and not task.cancelled():
                raise EngineDied(f"{task.get_name()} has ended") from task.exception()

    @property
    def is_drained(self) -> bool:
        """Whether `drain` has nothing more to do."""
        return self._drained is not None and self._drained.done()

    async def drain(self) -> None:
        """Take nothing new, finish what is running, leave the registry, stop.

        Returns when all that is done, also if it was begun by another call.
        """
        if self._drained is None:
            self._drained = asyncio.create_task(self._drain())
        await asyncio.shield(self._drained)

    async def _drain(self) -> None:
        log.info("draining")
        await self._servicer.drain(self._settings.replica.drain_timeout_s)
        await self._opened.aclose()
        log.info("drained")

    async def _load(self, epoch: int) -> None:
        """Make the engine, and what its outputs go to."""
        settings, identity = self._settings, internal.ReplicaHello()
        identity.replica_id, identity.epoch = self._replica_id, epoch
        board = LoadingBoard(self._redis, settings.redis.namespace)
        async with shown_progress(board, self._replica_id) as note:
            self._engine = EngineThread(
                lambda: self._make_engine(Path(settings.model), settings.engine, note),
                self._metrics.observe_step,
            )
            engine = settings.engine
            max_requests = engine.max_waiting_requests + engine.max_num_seqs
            self._dispatch = Dispatch(self._engine, max_requests)
            self._servicer = ReplicaServicer(identity, self._dispatch, self._engine)
            self._publisher = self._make_publisher(epoch)
            self._opened.push_async_callback(self._engine.stop)
            await self._engine.start(on_report=self._report, on_death=self._die)

    def _make_publisher(self, epoch: int) -> PrefixPublisher:
        redis, lease_s = self._settings.redis, self._settings.replica.lease_s
        member = f"{self._replica_id}@{epoch}"
        return PrefixPublisher(BlockLog(self._redis, redis.namespace, member, lease_s), lease_s)

    def _report(self, step: StepReport) -> None:
        """Pass on what a turn of the engine has to say."""
        self._dispatch.report(step)
        self._publisher.note(step.cache_events)

    async def _open(self, epoch: int) -> None:
        """Open the endpoints and enter the registry; draining closes in reverse order."""
        record = ReplicaRecord(
            replica_id=self._replica_id,
            epoch=epoch,
            model=self._model_name,
            address=await self._serve_grpc(),
            metrics_address=self._serve_metrics(),
            pid=os.getpid(),
        )
        card = self._engine.card(self._model_name)
        lease = Lease(self._registry, record, card, self._settings.replica.lease_s)
        self._keep(self._watch(), "watch over the engine")
        self._keep(self._servicer.report_load(), "load reports")
        self._keep(self._publisher.run(), "prefix events")
        self._keep(lease.run(), "lease")

    async def _serve_grpc(self) -> str:
        host = node_host(self._settings)
        server = grpc.aio.server(options=_SERVER_OPTIONS)
        add_ReplicaServiceServicer_to_server(self._servicer, server)
        port = server.add_insecure_port(f"{host}:0")
        await server.start()
        self._opened.push_async_callback(server.stop, 1.0)
        return f"{host}:{port}"

    def _serve_metrics(self) -> str:
        engine = self._engine
        address, stop = self._metrics.serve(
            node_host(self._settings), lambda: engine.engine.stats, lambda: engine.load
        )
        self._opened.push_async_callback(asyncio.to_thread, stop)
        return address

    def _keep(self, coroutine: Coroutine[None, None, None], name: str) -> None:
        """Run it until the replica stops."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.append(task)
        self._opened.push_async_callback(_cancel, task)

    async def _watch(self) -> None:
        """Notice what keeps the engine from computing, also while it has nothing to compute."""
        while True:
            await asyncio.sleep(_WATCH_PERIOD_S)
            try:
                self._engine.check(self._settings.replica.max_step_s)
            except EngineDied as error:
                log.error("the replica is dead", reason=str(error))
                if isinstance(error, EngineHangs):
                    self._engine.dump_stacks()
                return self._die()

    def _die(self) -> None:
        """The engine is lost: routers are told at once, and Serve when it next asks."""
        self._servicer.fail(EngineDied("the engine failed"))
        for task in self._tasks:
            task.cancel()
        # What other processes hold is wanted by those of the next replica.
        self._stopping = asyncio.create_task(self._engine.stop())


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
