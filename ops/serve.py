"""`trunkline serve`: a cluster on this machine, from start to drain."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from yaml import YAMLError

from cluster.settings import Settings, load_settings
from ops.failure import CommandError, UsageError
from ops.models import SHIPPED, resolve
from ops.serve_cluster import LocalCluster
from ops.serve_rollouts import Rollouts
from ops.serve_screen import Screen
from ops.serve_signals import EXIT_INTERRUPTED, StopSignals

_EXIT_FAILED = 1


def serve(config: Path | None, overrides: dict[str, object]) -> int:
    """Serve until SIGINT or SIGTERM, then drain; a second signal ends everything at once.

    Returns the exit code. Raises UsageError if settings are not acceptable.
    """
    return asyncio.run(_serve(partial(_settings, config, overrides)))


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
    if not (directory / "config.json").is_file():
        raise ValueError(f"model: {directory} has no config.json, so it holds no model")
    name = settings.model_name or (settings.model if settings.model in SHIPPED else directory.name)
    return settings.model_copy(update={"model": str(directory), "model_name": name})


async def _serve(read_settings: Callable[[], Settings]) -> int:
    settings = read_settings()
    screen, signals = Screen(), StopSignals()
    # Ray puts a handler of its own in the place of ours for SIGTERM.
    cluster = LocalCluster(settings, on_ray=signals.heed)
    signals.heed()
    rollouts = Rollouts(cluster, screen, read_settings)
    try:
        await _until(signals.told, screen.show(_bring_up(cluster), cluster.loading))
        if signals.told.is_set():
            return EXIT_INTERRUPTED
        screen.ready(cluster.settings, cluster.addresses, cluster.directory)
        await _until(signals.told, _keep_up(cluster, rollouts))
        return 0
    except CommandError as error:
        screen.say(f"trunkline: {error} (logs: {cluster.directory})")
        return _EXIT_FAILED
    finally:
        if signals.told.is_set():
            screen.say("stopping; a second Ctrl-C does not wait for running requests")
        await cluster.stop(keep_logs=not signals.told.is_set())


async def _bring_up(cluster: LocalCluster) -> None:
    await cluster.start()
    await cluster.wait_ready()


async def _keep_up(cluster: LocalCluster, rollouts: Rollouts) -> None:
    await asyncio.gather(cluster.watch(), rollouts.run())


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
