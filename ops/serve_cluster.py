"""A whole cluster, started from this machine: Redis, Ray, replicas, router."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cluster.loading import LoadingBoard, LoadingProgress
from cluster.ray_cluster import join_ray, leave_ray, start_local_ray
from cluster.ray_node import JoinError
from cluster.redis_client import connect
from cluster.settings import Settings
from ops.failure import CommandError
from ops.serve_head import Head
from ops.serve_reaper import Reaper
from ops.serve_redis import OwnRedis
from ops.serve_router import RouterProcesses
from ops.serve_run_file import note_rollout, write_run_file

_POLL_S = 0.2
_TIMEOUT_S = 5.0
_ROLLED_OUT = ("model", "model_name", "models", "engine", "replica", "log")
"""The settings that replicas are made of."""


class LocalCluster:
    """`start`, `wait_ready`, `watch`; and in any case `stop`. For the main thread's event loop."""

    def __init__(self, settings: Settings, on_ray: Callable[[], None]) -> None:
        """`settings` with the models' directories and names; `on_ray` is called once Ray is up."""
        self._on_ray = on_ray
        self.directory = Path(tempfile.mkdtemp(prefix="trunkline-"))
        self.addresses: dict[str, str] = {}
        self.head = Head(settings, self.directory) if settings.ray.node_address else None
        self._shortages: dict[str, str] = {}
        self._redis = OwnRedis(settings, self.directory)
        self.settings = settings = self._redis.with_urls(settings)
        self._router = RouterProcesses(settings, self.directory)
        self._reaper = Reaper()
        self._deploying: asyncio.Future[None] | None = None
        self._apps: set[str] = set()
        """Serve's applications that were deployed."""
        self._stopping = False
        self._run_file: Path | None = None

    @property
    def shortage(self) -> str:
        """Why replicas wait for another machine, if they do."""
        return "; ".join(filter(None, self._shortages.values()))

    async def start(self) -> None:
        """Start everything, all at the same time. Raises CommandError."""
        await _told(self._redis.start())
        if self.head is not None:
            await _told(self.head.start())
        self._loop = asyncio.get_running_loop()
        # A thread cannot be cancelled: `stop` has to wait for it.
        self._deploying = self._loop.run_in_executor(None, self._deploy)
        deployed = _told(asyncio.shield(self._deploying))
        self.addresses, _ = await asyncio.gather(self._router.start(), deployed)
        assert self.settings.redis.url is not None, "given or our own"
        self._run_file = write_run_file(
            grpc_address=self.addresses["grpc"],
            http_address=self.addresses["http"],
            redis_url=self.settings.redis.url,
            namespace=self.settings.redis.namespace,
        )

    async def wait_ready(self) -> None:
        """Return when the router can send requests to all replicas.

        Raises CommandError if they do not start; for want of room only where no machine can join
        that would have it.
        """
        from workers.replica.rollout import apps_of

        apps = apps_of(self.settings)
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as http:
            await asyncio.gather(*(self._wait_ready(http, app, apps[app]) for app in apps))

    async def _wait_ready(self, http: httpx.AsyncClient, app: str, settings: Settings) -> None:
        from workers.replica.rollout import rollout_status, watch_placement

        placement = watch_placement(settings, app)
        while await self._num_ready(http, settings.model_name) < settings.replica.count:
            failure = (await asyncio.to_thread(rollout_status, app)).failure
            self._shortages[app] = shortage = await asyncio.to_thread(placement.failure)
            if failure := failure or ("" if self.head else shortage):
                raise CommandError(f"replicas of {settings.model_name} do not start: {failure}")
            await asyncio.sleep(_POLL_S)

    async def loading(self) -> list[LoadingProgress]:
        """How far the replicas are that are loading. Raises RedisError."""
        assert self.settings.redis.url is not None, "given or our own"
        async with connect(self.settings.redis.url) as redis:
            return await LoadingBoard(redis, self.settings.redis.namespace).read()

    async def watch(self) -> None:
        """Start again what ends of our own children, until cancelled.

        Raises CommandError if one of them cannot be started again.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._router.keep())
                group.create_task(self._redis.keep())
                if self.head is not None:
                    group.create_task(self.head.watch())
        except ExceptionGroup as failures:
            raise CommandError(f"cannot go on: {failures.exceptions[0]}") from failures

    async def roll_out(self, settings: Settings) -> None:
        """Replace all replicas by those of `settings`, of which router, Redis and Ray are not part.

        One model after the other. Returns when the old ones have drained. Raises CommandError if
        the new ones do not start or do not stay; then there are those of the settings before,
        again.
        """
        changed = {name: getattr(settings, name) for name in _ROLLED_OUT}
        settings = self._redis.with_urls(self.settings.model_copy(update=changed))
        try:
            await self._replace_replicas(settings)
        except CommandError:
            await self._roll_back()
            raise
        self.settings = settings

    async def _roll_back(self) -> None:
        """Deploy what was there again.

        A deployment that has failed gets no new replicas, whichever of its old ones it loses. And
        one takes the blame for replicas of the version before it that fail after it has begun.
        """
        from workers.replica.rollout import rollout_status

        for app in self._apps:
            # Serve tells of no events.
            while (await asyncio.to_thread(rollout_status, app)).num_starting:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
        await self._replace_replicas(self.settings)

    async def _replace_replicas(self, settings: Settings) -> None:
        from workers.replica.rollout import apps_of, undeploy

        apps = apps_of(settings)
        for app in apps:
            await self._replace_app(app, apps)
        if gone := self._apps - apps.keys():
            self._deploying = self._loop.run_in_executor(None, undeploy, tuple(gone))
            await _told(asyncio.shield(self._deploying))
            self._apps -= gone

    async def _replace_app(self, app: str, apps: Mapping[str, Settings]) -> None:
        from workers.replica.rollout import rollout_status, watch_placement

        self._deploying = self._loop.run_in_executor(None, self._deploy_app, app, apps)
        await _told(asyncio.shield(self._deploying))
        placement = watch_placement(apps[app], app)
        while not (status := await asyncio.to_thread(rollout_status, app)).running:
            if failure := status.failure or await asyncio.to_thread(placement.failure):
                raise CommandError(f"{apps[app].model_name}: {failure}")
            await asyncio.sleep(_POLL_S)

    def note_rollout(self, failure: str) -> None:
        """Tell other commands that a rolling update has ended, and why it failed, if it did."""
        assert self._run_file is not None, "start() comes first"
        note_rollout(self._run_file, failure)

    async def stop(self, *, keep_logs: bool) -> None:
        """Drain the router, then the replicas, then end everything; nothing is left behind."""
        self._stopping = True
        try:
            await self._router.stop()
            if self._deploying is not None:
                await asyncio.wait([self._deploying])
                await asyncio.to_thread(self._undeploy)
            await self._redis.stop()
            if self.head is not None:
                await self.head.stop()
        finally:
            await asyncio.to_thread(self._reaper.reap)
            if self._run_file is not None:
                self._run_file.unlink(missing_ok=True)
            if not keep_logs:
                shutil.rmtree(self.directory, ignore_errors=True)

    def _deploy(self) -> None:
        ray = self.settings.ray
        if self.head is not None:
            join_ray(self.head.address, self.head.node_address)
        elif ray.address is not None:
            join_ray(ray.address)
        else:
            start_local_ray(ray, self.directory / "ray")
        self._loop.call_soon_threadsafe(self._on_ray)
        if not self._stopping:
            from workers.replica.rollout import apps_of

            apps = apps_of(self.settings)
            for app in apps:
                self._deploy_app(app, apps)

    def _deploy_app(self, app: str, apps: Mapping[str, Settings]) -> None:
        """Deploy one of these models."""
        from workers.replica.rollout import deploy

        others = [settings for other, settings in apps.items() if other != app]
        deploy(apps[app], app, others)
        self._apps.add(app)

    def _undeploy(self) -> None:
        if self._apps:
            from workers.replica.rollout import undeploy

            undeploy(tuple(self._apps))
        leave_ray()

    async def _num_ready(self, http: httpx.AsyncClient, model: str | None) -> int:
        """By the router's metrics, for which it asks no key."""
        try:
            answer = await http.get(f"http://{self.addresses['http']}/metrics")
            text = answer.raise_for_status().text
        except httpx.HTTPError:
            # The router is being started again; should that go on, its log says why.
            return -1
        return sum(
            int(sample.value)
            for family in text_string_to_metric_families(text)
            if family.name == "trunkline:replicas_ready"
            for sample in family.samples
            if sample.labels["model"] == model
        )


async def _told(starting: Awaitable[None]) -> None:
    """Whatever keeps a part from starting, in one line. Raises CommandError."""
    try:
        await starting
    except (OSError, RuntimeError, ValueError, JoinError) as error:
        raise CommandError(str(error).strip().splitlines()[0]) from error
