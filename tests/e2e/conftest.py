"""One cluster of two replicas for most tests."""

from collections.abc import Iterator

import pytest
from openai import OpenAI
from trunkline import Client, RetryPolicy

from tests.e2e.cluster import Cluster, serving
from tests.e2e.settings import SETTINGS


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """A cluster that tests may harm as long as it recovers by itself."""
    with serving("demo", SETTINGS) as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    """The SDK; whatever has to be tried again, the router does it."""
    with Client(cluster.grpc, retry=RetryPolicy(max_attempts=1)) as connected:
        yield connected


@pytest.fixture
def openai(cluster: Cluster) -> Iterator[OpenAI]:
    """The official client."""
    with OpenAI(base_url=f"{cluster.http}/v1", api_key="none", max_retries=0) as connected:
        yield connected
