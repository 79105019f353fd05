"""The router's process: `python -m router.main [--config FILE] [--config-json JSON]`.

When it is listening, it prints one line of JSON, such as
`{"grpc": "127.0.0.1:50051", "http": "127.0.0.1:8000"}`. SIGTERM or SIGINT drain it.
"""

import argparse
import asyncio
import gc
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
import uvloop

from cluster.logs import configure_logs
from cluster.redis_client import connect
from cluster.registry import Registry
from cluster.settings import Settings, load_settings
from router.router import Router

log = structlog.get_logger(__name__)

_EXIT_SETTINGS = 2
_YOUNG_OBJECTS = 10_000
"""Garbage is looked for when there are so many more objects than at the last time."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a router until it is told to stop; returns the exit code."""
    try:
        settings = _settings(argv)
        redis_url = _redis_url(settings)
    except (ValueError, OSError) as error:
        print(f"router: {error}", file=sys.stderr)
        return _EXIT_SETTINGS
    configure_logs(settings.log, process="router")
    try:
        uvloop.run(_serve(settings, redis_url))
    except (OSError, RuntimeError) as error:
        log.error("router cannot run", error=str(error))
        return 1
    return 0


def _settings(argv: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(prog="router.main", description="Trunkline's front door.")
    parser.add_argument("--config", type=Path, help="YAML file with settings")
    parser.add_argument(
        "--config-json", type=json.loads, default={}, help="settings that override the file's"
    )
    arguments = parser.parse_args(argv)
    return load_settings(arguments.config, **arguments.config_json)


def _redis_url(settings: Settings) -> str:
    if settings.redis.url is None:
        raise ValueError("redis.url: a router needs the cluster's Redis, and none is set")
    return settings.redis.url


async def _serve(settings: Settings, redis_url: str) -> None:
    redis = connect(redis_url)
    router = Router(settings.router, Registry(redis, settings.redis.namespace))
    told_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    addresses = await router.start()
    # What there is now stays: nobody need look for garbage in it, with all requests waiting.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    print(json.dumps(addresses), flush=True)
    try:
        await router.serve_until(told_to_stop)
    finally:
        await redis.aclose()


if __name__ == "__main__":
    sys.exit(main())
