from collections.abc import Iterator

import pytest

from tests.proto.fake_inference import FakeInference, serve


@pytest.fixture
def service() -> FakeInference:
    return FakeInference()


@pytest.fixture
def address(service: FakeInference) -> Iterator[str]:
    with serve(service) as address:
        yield address
