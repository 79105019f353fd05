"""Hosts for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.multinode.hosts import Host, connected_hosts


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Two, which the tests of a file share."""
    try:
        with connected_hosts(2) as connected:
            yield connected
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(str(error))
