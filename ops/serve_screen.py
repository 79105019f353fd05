"""What `trunkline serve` shows."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress

from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cluster.settings import Settings
from ops.serve_cluster import LocalCluster

_PERIOD_S = 0.2

_READY = """\
Trunkline serves {models}
  gRPC    {grpc}
  HTTP    http://{http}/v1
  Logs    {logs}{join}

  curl http://{http}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'

  python -c 'from trunkline import Client; print(Client("{grpc}").generate("Hello", \
model="{model}").text())'

Ctrl-C drains and stops it.\
"""


class Screen:
    """Progress goes to standard error, the ready block to standard output."""

    def __init__(self) -> None:
        self._errors = Console(stderr=True, highlight=False)
        self._output = Console(highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """One line about what is going on."""
        self._errors.print(text, markup=False, soft_wrap=True)

    async def show(self, starting: Awaitable[None], cluster: LocalCluster) -> None:
        """Show how loading goes on while `starting` is awaited; raises what that raises."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._errors, transient=True) as progress:
            bar = progress.add_task("starting Redis, Ray and the router", total=None)
            following = asyncio.create_task(self._follow(progress, bar, cluster))
            try:
                await starting
            finally:
                following.cancel()

    def ready(self, cluster: LocalCluster) -> None:
        """All that is needed to use the cluster, and to add machines to it."""
        join = f"\n  Join    {cluster.head.join_command}" if cluster.head else ""
        block = _READY.format(
            models=", ".join(map(_described, cluster.settings.each_model)),
            model=cluster.settings.model_name,
            logs=cluster.directory,
            join=join,
            **cluster.addresses,
        )
        self._output.print(block, markup=False)

    async def _follow(self, progress: Progress, bar: TaskID, cluster: LocalCluster) -> None:
        told = ""
        while True:
            # Redis itself may still be starting.
            with suppress(RedisError, OSError):
                replicas = await cluster.loading()
                if replicas:
                    done, total = (sum(getattr(r, f) for r in replicas) for f in ("done", "total"))
                    text = "loading weights" if total else "starting replicas"
                    progress.update(bar, description=text, completed=done, total=total or None)
            if cluster.shortage and not told:
                told = cluster.shortage
                self.say(f"waiting for machines: {told}")
            await asyncio.sleep(_PERIOD_S)


def _described(settings: Settings) -> str:
    """One of the models, and how many replicas it has."""
    count = settings.replica.count
    return f"{settings.model_name} ({count} replica{'' if count == 1 else 's'})"
