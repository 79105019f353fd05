"""What the tests of kernels share."""

import pytest

from tests.workers.kernels.builds import NAMES, built_library
from workers.kernels.library import Library


@pytest.fixture(scope="session", params=NAMES)
def library(request: pytest.FixtureRequest) -> Library:
    """Each build that this processor can run, and the one for AVX512 emulated; one thread."""
    return built_library(request.param)
