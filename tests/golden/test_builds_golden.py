"""Every build of the kernels, and torch without any, gives transformers' greedy tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.models import CASES, Case
from tests.golden.test_engine_golden import expected_outputs, make_llm, outputs
from tests.workers.kernels.builds import NAMES, built_library
from workers.kernels import library

SHAPES = [
    case
    for case in CASES
    if case.id in ("llama-bias", "mistral-window", "qwen3", "qwen2-moe", "qwen3-moe")
]


@pytest.fixture(scope="module", params=SHAPES, ids=lambda case: case.id)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder, prompts, expected outputs) of one architecture."""
    chosen: Case = request.param
    torch.set_num_threads(1)
    return expected_outputs(chosen, tmp_path_factory.mktemp(chosen.id))


@pytest.mark.parametrize("build", ["none", *NAMES])
def test_alone_in_a_batch_and_in_chunks(
    case: tuple[Path, list[list[int]], list[list[int]]],
    build: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, prompts, expected = case
    built = None if build == "none" else built_library(build)
    monkeypatch.setattr(library, "_machine_library", lambda: built)
    llm = make_llm(folder)
    assert llm.engine.model.is_native is (built is not None)
    assert outputs(llm, prompts) == expected
    assert outputs(make_llm(folder, max_num_batched_tokens=33), prompts[-1:]) == expected[-1:]
