"""One cluster for most tests."""

from collections.abc import Iterator

import pytest

from tests.chaos.settings import SETTINGS
from tests.e2e.cluster import Cluster, serving


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Two replicas, which compute in float32: there, tokens do not depend on the batch."""
    with serving("demo", SETTINGS) as running:
        yield running
