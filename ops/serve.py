"""`trunkline serve`: a cluster on this machine, from start to drain."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path

from pydantic import ValidationError
from yaml import YAMLError

from cluster.settings import Settings, load_settings
from ops.failure import CommandError, UsageError
from ops.models import SHIPPED, resolve
from ops.serve_cluster import LocalCluster
from ops.serve_screen import Screen

_EXIT_FAILED = 1
_EXIT_INTERRUPTED = 130


def serve(config: Path | None, overrides: dict[str, object]) -> int:
    """Serve until SIGINT or SIGTERM, then drain; a second signal ends everything at once.

    Returns the exit code. Raises UsageError if settings are not acceptable.
    """
    return asyncio.run(_serve(_settings(config, overrides)))


def _settings(config: Path | None, overrides: dict[str, object]) -> Settings:
    try:
        return _with_model_directory(load_settings(config, **overrides))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(f"{field}: got {first['input']!r}: {first['msg']}") from error
    except (OSError, ValueError, YAMLError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _with_model_directory(settings: Settings) -> Settings:
    """The settings with the model's directory in full, and the name it is served by."""
    directory = resolve(settings.model).absolute()
    name = settings.model_name or (settings.model if settings.model in SHIPPED else directory.name)
    return settings.model_copy(update={"model": str(directory), "model_name": name})


async def _serve(settings: Settings) -> int:
    screen = Screen()
    cluster = LocalCluster(settings)
    told_to_stop = _heed_signals(cluster)
    try:
        await _until(told_to_stop, screen.show(_bring_up(cluster), cluster.loading))
        if told_to_stop.is_set():
            return _EXIT_INTERRUPTED
        screen.ready(cluster.settings, cluster.addresses, cluster.directory)
        await _until(told_to_stop, cluster.watch())
    except CommandError as error:
        screen.say(f"trunkline: {error} (logs: {cluster.directory})")
        return _EXIT_FAILED
    finally:
        screen.say("stopping; a second Ctrl-C does not wait for running requests")
        await cluster.stop()
    cluster.forget()
    return 0


async def _bring_up(cluster: LocalCluster) -> None:
    await cluster.start()
    await cluster.wait_ready()


async def _until(told: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Run `work` to its end, or until the event is set. Raises what it raises."""
    working, telling = asyncio.create_task(work), asyncio.create_task(told.wait())
    try:
        await asyncio.wait({working, telling}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        telling.cancel()
        working.cancel()
        await asyncio.wait({working})
    if not working.cancelled():
        working.result()


def _heed_signals(cluster: LocalCluster) -> asyncio.Event:
    """The event that a first SIGINT or SIGTERM sets; a second one ends everything at once."""
    told = asyncio.Event()

    def heed() -> None:
        if told.is_set():
            cluster.kill()
            os._exit(_EXIT_INTERRUPTED)
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, heed)
    return told
