"""`trunkline serve`: a cluster, from start to drain."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import ValidationError
from yaml import YAMLError

from cluster.settings import ParallelSettings, Settings, load_settings
from ops.failure import CommandError, UsageError
from ops.models import SHIPPED, resolve
from ops.serve_cluster import LocalCluster
from ops.serve_head import check_addresses
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
        settings = load_settings(config, **overrides)
        check_addresses(settings)
        settings = _with_model_directories(settings)
        for one in settings.each_model:
            _check_layout(one)
        return settings
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(f"{field}: got {first['input']!r}: {first['msg']}") from error
    except (OSError, ValueError, YAMLError) as error:
        raise UsageError(" ".join(str(error).split())) from error


def _with_model_directories(settings: Settings) -> Settings:
    """The settings with each model's directory in full, and the name it is served by."""
    first = _found("model", settings.model, settings.model_name)
    more = [
        _found(f"models.{i}.model", m.model, m.model_name) for i, m in enumerate(settings.models)
    ]
    names = [found["model_name"] for found in (first, *more)]
    for position, name in enumerate(names):
        if name in names[:position]:
            raise ValueError(f"models.{position - 1}.model_name: {name!r} is another model's too")
    models = [m.model_copy(update=found) for m, found in zip(settings.models, more, strict=True)]
    return settings.model_copy(update={**first, "models": tuple(models)})


def _found(field: str, model: str, name: str | None) -> dict[str, str]:
    """A model's directory in full, and its name."""
    directory = resolve(model).absolute()
    if not (directory / "config.json").is_file():
        raise ValueError(f"{field}: {directory} has no config.json, so it holds no model")
    name = name or (model if model in SHIPPED else directory.name)
    return {"model": str(directory), "model_name": name}


def _check_layout(settings: Settings) -> None:
    """Raise ValueError if the model cannot be divided as the settings say."""
    if settings.engine.parallel == ParallelSettings():
        return
    from workers.models.config import ModelConfig
    from workers.models.fit import check_layout
    from workers.parallel.layout import ParallelLayout

    layout = ParallelLayout(**settings.engine.parallel.model_dump())
    check_layout(ModelConfig.read(Path(settings.model)), layout)


async def _serve(read_settings: Callable[[], Settings]) -> int:
    settings = read_settings()
    screen, signals = Screen(), StopSignals()
    # Ray puts a handler of its own in the place of ours for SIGTERM.
    cluster = LocalCluster(settings, on_ray=signals.heed)
    signals.heed()
    rollouts = Rollouts(cluster, screen, read_settings)
    try:
        await signals.until_told(screen.show(_bring_up(cluster, screen), cluster))
        if signals.told.is_set():
            return EXIT_INTERRUPTED
        screen.ready(cluster)
        await signals.until_told(_keep_up(cluster, rollouts))
        return 0
    except CommandError as error:
        screen.say(f"trunkline: {error} (logs: {cluster.directory})")
        return _EXIT_FAILED
    finally:
        if signals.told.is_set():
            screen.say("stopping; a second Ctrl-C does not wait for running requests")
        await cluster.stop(keep_logs=not signals.told.is_set())


async def _bring_up(cluster: LocalCluster, screen: Screen) -> None:
    await cluster.start()
    if cluster.head is not None:
        # Now, for replicas may be waiting for the machine that joins.
        screen.say(f"other machines join by: {cluster.head.join_command}")
    await cluster.wait_ready()


async def _keep_up(cluster: LocalCluster, rollouts: Rollouts) -> None:
    await asyncio.gather(cluster.watch(), rollouts.run())
