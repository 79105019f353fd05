"""Hosts for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.multinode.hosts import Host, check_namespaces, connected_hosts


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Two, which the tests of a file share."""
    try:
        check_namespaces()
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(str(error))
    with connected_hosts(2) as connected:
        yield connected
