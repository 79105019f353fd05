"""For tests that start Ray."""

import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ray_cluster import leave_ray, start_local_ray
from cluster.ray_environment import use_token
from cluster.settings import RaySettings

# Here, since Ray reads it when a test module imports it.
use_token(secrets.token_hex(32))


@pytest.fixture(scope="session")
def ray_cpus() -> Iterator[int]:
    """A Ray that tests take turns to deploy on, and how many CPUs it has."""
    num_cpus = 4
    # Not pytest's directory, whose path is too long for the names of Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="tl-", ignore_cleanup_errors=True) as name:
        start_local_ray(RaySettings(num_cpus=num_cpus), Path(name) / "ray")
        try:
            yield num_cpus
        finally:
            leave_ray()
