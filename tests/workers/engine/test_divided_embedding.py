"""A model divided among ranks of every kind embeds prompts as one rank alone does."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden.models import VOCAB_SIZE
from tests.workers.engine.divided_model import engine_settings, save_case
from tests.workers.engine.thread_gang import with_ranks
from workers.engine.engine import Engine
from workers.engine.mean_pool import Floats
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams

LAYOUTS = [
    *({"tensor": 2}, {"pipeline": 2}, {"tensor": 2, "pipeline": 2}),
    *({"sequence": 2}, {"sequence": 2, "tensor": 2}),
]
PROMPTS = [[*range(3, VOCAB_SIZE)], [11], [5, 6, 7, 8] * 9, [*range(3, 35)]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_case("llama", tmp_path_factory.mktemp("llama"))


def embed(engine: Engine) -> list[Floats]:
    """Of all prompts, beside a request for tokens."""
    for number, prompt in enumerate(PROMPTS):
        engine.add(Request(f"{number}", prompt, SamplingParams(), embed=True))
    engine.add(Request("tokens", PROMPTS[2], SamplingParams(max_tokens=12, ignore_eos=True)))
    found: dict[str, Floats] = {}
    while engine.has_work:
        for output in engine.step():
            if output.embedding is not None:
                found[output.request_id] = output.embedding
    engine.check_integrity()
    return [found[f"{number}"] for number in range(len(PROMPTS))]


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_ranks_embed_as_one_does(folder: Path, parallel: dict[str, int]) -> None:
    expected = embed(Engine(folder, engine_settings()))
    found = with_ranks(folder, engine_settings(parallel=parallel), embed)
    np.testing.assert_allclose(found, expected, atol=2e-5)
