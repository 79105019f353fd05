"""Addresses can be pasted into a URL."""

import pytest

from router.address import authority


@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "127.0.0.1:80"), ("::1", "[::1]:80"), ("a.b", "a.b:80")]
)
def test_host_and_port(host: str, written: str) -> None:
    assert authority(host, 80) == written
