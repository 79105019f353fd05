"""Random models of the kinds that a file of tests names."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.golden.models import Case, save_random
from tests.workers.models.rank_driver import SIZES, Fed, feed


@pytest.fixture(scope="module")
def model_dir(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a kind of the file's KINDS: a configuration's class, and what differs from
    SIZES."""

    @cache
    def saved(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        config, changes = request.module.KINDS[kind]
        save_random(Case(kind, lambda: config(**(SIZES | changes))), folder)
        return folder

    return saved


@pytest.fixture(scope="module")
def alone(model_dir: Callable[[str], Path]) -> Callable[[str], Fed]:
    """What one rank computes with a kind."""
    return cache(lambda kind: feed(model_dir(kind)))
