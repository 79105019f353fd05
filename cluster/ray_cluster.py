"""A Ray cluster to put replicas on: one of our own on this machine, or one that runs already."""

import logging
import os
import secrets
from pathlib import Path

from cluster.ray_environment import prepare_alone
from cluster.settings import RaySettings

NUM_LOGICAL_CPUS = 256
"""CPUs that a cluster on one machine pretends to have. Replicas share the real ones as they like;
what matters is that there is room for the replicas of the next version beside those of this one."""


def start_local_ray(settings: RaySettings, directory: Path) -> None:
    """Start a cluster with its files in `directory`, and connect this process to it.

    Ray reads part of its environment when it is imported, so that must not have happened before.
    Raises what `ray.init` raises.
    """
    prepare_alone(secrets.token_hex(32))
    import ray  # noqa: PLC0415 - takes a while

    ray.init(
        address="local",
        num_cpus=NUM_LOGICAL_CPUS if settings.num_cpus is None else settings.num_cpus,
        include_dashboard=False,
        object_store_memory=settings.object_store_bytes,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(directory),
    )


def join_ray(address: str, node_address: str | None = None) -> None:
    """Connect this process to a running cluster; its token, if any, comes from the environment.

    `node_address` is that of this machine's node, where it may be taken for another one. Raises
    ConnectionError if the cluster cannot be reached.
    """
    os.environ.setdefault(
        "RAY_AUTH_MODE", "token" if "RAY_AUTH_TOKEN" in os.environ else "disabled"
    )
    import ray  # noqa: PLC0415 - takes a while

    ray.init(
        address=address,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address=node_address,
    )


def leave_ray() -> None:
    """Disconnect, and end the cluster if this process started it."""
    import ray  # noqa: PLC0415 - takes a while

    ray.shutdown()
