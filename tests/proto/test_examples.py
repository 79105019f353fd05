"""The examples in the docstrings do what they say."""

import asyncio
import doctest
from types import ModuleType

import pytest
import trunkline
import trunkline.aio
import trunkline.client


@pytest.mark.parametrize("module", [trunkline, trunkline.client, trunkline.aio], ids=str)
def test_examples_in_docstrings(module: ModuleType, address: str) -> None:
    names = {"address": address, "asyncio": asyncio, **vars(trunkline)}
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder().find(module, globs=names):
        runner.run(example)
    assert runner.tries > 0
    assert runner.failures == 0
