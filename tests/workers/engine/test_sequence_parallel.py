"""Ranks that divide rows and KV blocks among them: an engine answers as one rank alone does."""

from pathlib import Path

import pytest
import torch

from tests.workers.engine.divided_model import BLOCK, engine_settings, save_case
from tests.workers.engine.forked_ranks import ForkedRanks
from tests.workers.engine.thread_gang import with_ranks
from workers.engine.engine import Engine
from workers.engine.engine_start import start_engine
from workers.engine.request import Request, SampleOutput
from workers.engine.sampling_params import SamplingParams
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

PROMPT = [5, 6, 7, 8, 9] * 20
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, top_logprobs=0)
REQUESTS = [
    Request("long", PROMPT, GREEDY),
    Request("short", [11], GREEDY),
    Request("forked", [12, *PROMPT[:20]], SamplingParams(max_tokens=12, n=3, seed=1)),
    Request("scored", PROMPT[:37], SamplingParams(max_tokens=3, prompt_top_logprobs=1)),
    # Ends within a cached block, of which the first tokens are copied.
    Request("shared", [*PROMPT[:45], 30, 31], GREEDY),
]


@pytest.fixture(scope="module", params=["llama", "mistral-window", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory)


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("mixtral", tmp_path_factory)


def saved(case_id: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_case(case_id, tmp_path_factory.mktemp(case_id))


Answer = dict[tuple[str, int], list[SampleOutput]]


def answer(engine: Engine) -> Answer:
    """All of REQUESTS, the last of them when the others are done, so that it finds their blocks."""
    outputs: Answer = {}
    for requests in (REQUESTS[:-1], REQUESTS[-1:]):
        for request in requests:
            engine.add(request)
        while engine.has_work:
            for output in engine.step():
                outputs.setdefault((output.request_id, output.index), []).append(output)
    engine.check_integrity()
    shared = outputs["shared", 0][0].started
    assert shared is not None
    assert shared.cached_prompt_tokens % BLOCK, "the copy of a block is part of the test"
    return outputs


def check_same(found: Answer, expected: Answer, atol: float = 1e-4) -> None:
    """Tokens equal, and log-probabilities up to rounding."""
    assert found.keys() == expected.keys()
    for key, outputs in found.items():
        assert tokens(outputs) == tokens(expected[key]), key
        torch.testing.assert_close(logprobs(outputs), logprobs(expected[key]), atol=atol, rtol=0)


def tokens(outputs: list[SampleOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def logprobs(outputs: list[SampleOutput]) -> torch.Tensor:
    return torch.tensor(
        [lp.logprob for output in outputs for lp in (*output.prompt_logprobs, *output.logprobs)]
    )


@pytest.mark.parametrize(("attention", "size"), [("native", 3), ("sdpa", 2)])
def test_ranks_answer_as_one_does(folder: Path, attention: str, size: int) -> None:
    """Long prompts in chunks, forks, copies of blocks, prompt log-probabilities, windows."""
    expected = answer(Engine(folder, engine_settings(attention=attention)))
    divided = engine_settings(attention=attention, parallel={"sequence": size})
    check_same(with_ranks(folder, divided, answer), expected)


@pytest.mark.parametrize(
    "parallel",
    [
        {"sequence": 2, "tensor": 2},
        {"sequence": 2, "pipeline": 2},
        {"sequence": 2, "tensor": 2, "pipeline": 2},
    ],
    ids=str,
)
def test_with_parts_of_matrices_and_stages(llama: Path, parallel: dict[str, int]) -> None:
    expected = answer(Engine(llama, engine_settings()))
    check_same(with_ranks(llama, engine_settings(parallel=parallel), answer), expected)


@pytest.mark.parametrize("parallel", [{"sequence": 2}, {"sequence": 2, "expert": 2}], ids=str)
def test_with_experts(mixtral: Path, parallel: dict[str, int]) -> None:
    expected = answer(Engine(mixtral, engine_settings()))
    check_same(with_ranks(mixtral, engine_settings(parallel=parallel), answer), expected)


def test_an_int8_cache(llama: Path) -> None:
    changes = {"kv_cache_dtype": "int8"}
    expected = answer(Engine(llama, engine_settings(**changes)))
    found = with_ranks(llama, engine_settings(parallel={"sequence": 2}, **changes), answer)
    # A rounding difference before int8 may move an element by a whole step.
    check_same(found, expected, atol=5e-2)


def test_ranks_hold_that_many_times_the_blocks_of_one(llama: Path) -> None:
    """And a context that one rank has no room for is served by two."""
    num_blocks = 8
    config = ModelConfig.read(llama)
    size = num_blocks * KVCache.bytes_per_block(config, BLOCK, torch.float32)
    request = Request("long", PROMPT, GREEDY)

    def body(engine: Engine) -> list[int]:
        assert engine.load().total_blocks == 2 * (num_blocks + 1) - 1
        engine.add(request)
        found: list[SampleOutput] = []
        while engine.has_work:
            found += engine.step()
        return tokens(found)

    divided = engine_settings(kv_cache_bytes=size, parallel={"sequence": 2})
    found = with_ranks(llama, divided, body)
    assert found == tokens(answer(Engine(llama, engine_settings()))["long", 0])


def test_processes_that_share_memory(llama: Path, tmp_path: Path) -> None:
    """Kernels do all there, the exchange included, so steps are recorded and played."""
    expected = answer(Engine(llama, engine_settings()))
    engine = start_engine(
        llama, engine_settings(parallel={"sequence": 2}), lambda: ForkedRanks(tmp_path)
    )
    try:
        assert engine.model.is_native
        check_same(answer(engine), expected)
    finally:
        engine.close()


def test_determinism_is_refused(llama: Path) -> None:
    divided = engine_settings(deterministic=True, parallel={"sequence": 2})
    with pytest.raises(
        ValueError, match=r"engine\.deterministic: got engine\.parallel\.sequence 2"
    ):
        with_ranks(llama, divided, lambda engine: engine)
