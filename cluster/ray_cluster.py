"""A Ray cluster to put replicas on: one of our own on this machine, or one that runs already."""

import logging
import os
import secrets
from pathlib import Path

from cluster.settings import RaySettings

NUM_LOGICAL_CPUS = 256
"""CPUs that a cluster on one machine pretends to have. Replicas share the real ones as they like;
what matters is that there is room for the replicas of the next version beside those of this one."""


def start_local_ray(settings: RaySettings, directory: Path) -> None:
    """Start a cluster with its files in `directory`, and connect this process to it.

    Ray reads part of its environment when it is imported, so that must not have happened before.
    Raises what `ray.init` raises.
    """
    use_token(secrets.token_hex(32))
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Process titles must not overwrite the environment, by which the reaper knows its processes.
    os.environ["SPT_NOENV"] = "1"
    import ray  # noqa: PLC0415 - takes a while

    ray.init(
        address="local",
        num_cpus=NUM_LOGICAL_CPUS,
        include_dashboard=False,
        object_store_memory=settings.object_store_bytes,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(directory),
    )


def use_token(token: str) -> None:
    """Have Ray authenticate its processes by this token, unless the environment says otherwise.

    Local clusters switch that on by themselves, and keep the token in the home directory, where
    the next cluster's processes would find the wrong one: so we bring our own.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", token)


def join_ray(address: str) -> None:
    """Connect this process to a running cluster; its token, if any, comes from the environment.

    Raises ConnectionError if it cannot be reached.
    """
    os.environ.setdefault(
        "RAY_AUTH_MODE", "token" if "RAY_AUTH_TOKEN" in os.environ else "disabled"
    )
    import ray  # noqa: PLC0415 - takes a while

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def leave_ray() -> None:
    """Disconnect, and end the cluster if this process started it."""
    import ray  # noqa: PLC0415 - takes a while

    ray.shutdown()
