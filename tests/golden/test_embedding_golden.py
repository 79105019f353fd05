"""The engine's embeddings equal transformers', however the work is cut up.

They are the mean of the hidden states after the final norm, in float32, of length 1.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from cluster.errors import Reason, RequestError
from cluster.settings import EngineSettings
from tests.golden.models import CASES, VOCAB_SIZE, save_random
from workers.engine.engine import Engine
from workers.engine.engine_start import start_engine
from workers.engine.llm import LLM
from workers.engine.mean_pool import Floats
from workers.engine.request import FinishReason, Request
from workers.engine.sampling_params import SamplingParams
from workers.engine.subprocesses import SubprocessLauncher
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

LENGTHS = (1, 15, 16, 17, 45, 130)
"""Prompt lengths around the borders of blocks and windows."""
CHOSEN = ("llama", "mistral-window", "qwen3-tied", "qwen2-moe")


class Golden(NamedTuple):
    """A saved model, prompts, and their embeddings by transformers."""

    folder: Path
    prompts: list[list[int]]
    expected: list[Floats]


@pytest.fixture(scope="module", params=CHOSEN)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp(request.param)
    save_random(next(case for case in CASES if case.id == request.param), folder)
    Tokenizer(WordLevel({"a": 0})).save(str(folder / "tokenizer.json"))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    random = Random(7)
    prompts = [random.choices(range(VOCAB_SIZE), k=length) for length in LENGTHS]
    return Golden(folder, prompts, [_expected(reference, prompt) for prompt in prompts])


@torch.inference_mode()
def _expected(reference: Any, prompt: list[int]) -> Floats:
    outputs = reference(torch.tensor([prompt]), output_hidden_states=True)
    mean = outputs.hidden_states[-1][0].mean(0)
    embedding: Floats = torch.nn.functional.normalize(mean, dim=0).numpy()
    return embedding


def make_engine(folder: Path, **changes: Any) -> Engine:
    settings = {"dtype": "float32", "kv_cache_bytes": 2**24, "num_threads": 1, **changes}
    return start_engine(folder, EngineSettings.model_validate(settings), SubprocessLauncher)


def embed(engine: Engine, prompts: list[list[int]]) -> list[Floats]:
    """Of all prompts in one go."""
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), prompt, SamplingParams(), embed=True))
    found: dict[str, Floats] = {}
    while engine.has_work:
        for output in engine.step():
            assert not output.token_ids
            assert output.request_done
            assert output.finish_reason is FinishReason.STOP
            assert output.started is not None
            assert output.started.cached_prompt_tokens == 0
            assert output.embedding is not None
            assert output.request_id not in found
            found[output.request_id] = output.embedding
    engine.check_integrity()
    return [found[str(number)] for number in range(len(prompts))]


def check(found: Sequence[Floats], expected: Sequence[Floats]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_alone_in_a_batch_and_when_prefixes_are_cached(golden: Golden) -> None:
    engine = make_engine(golden.folder)
    check([embed(engine, [prompt])[0] for prompt in golden.prompts], golden.expected)
    check(embed(engine, golden.prompts), golden.expected)
    # The keys and values that an embedding leaves behind are there for those who want tokens.
    engine.add(Request("tokens", golden.prompts[-1], SamplingParams(max_tokens=1)))
    [output] = engine.step()
    assert output.started is not None
    assert output.started.cached_prompt_tokens >= 128


@pytest.mark.parametrize("budget", [3, 16, 33])
def test_chunks_of_any_size(golden: Golden, budget: int) -> None:
    engine = make_engine(golden.folder, max_num_batched_tokens=budget)
    check(embed(engine, golden.prompts), golden.expected)


def test_beside_requests_for_tokens_and_after_preemptions(golden: Golden) -> None:
    """Answers that grow beyond expectation take the blocks of a prompt that is half read."""
    config = ModelConfig.read(golden.folder)
    num_blocks = 13 if None in config.windows else 10  # windows give blocks back before
    cache_bytes = num_blocks * KVCache.bytes_per_block(config, 16, torch.float32)
    engine = make_engine(golden.folder, kv_cache_bytes=cache_bytes, max_num_batched_tokens=48)
    # From short answers the engine learns to start more than it has room for.
    every = tuple(range(VOCAB_SIZE))
    for number in range(8):
        engine.add(Request(f"{number}", [3], SamplingParams(max_tokens=1, stop_token_ids=every)))
    while engine.has_work:
        engine.step()
    growing = SamplingParams(temperature=0.0, max_tokens=40, min_tokens=40)
    for number in range(3):
        # Not the same, or they would come to share blocks.
        own = [number, *golden.prompts[1][1:]]
        engine.add(Request(f"{number}", own, growing, priority=1))
    prompt = golden.prompts[-1]
    engine.add(Request("embed", prompt, SamplingParams(), embed=True))
    embeddings: list[Floats] = []
    num_preempted = 0
    while engine.has_work:
        was_waiting = engine.load().waiting_requests
        embeddings += [o.embedding for o in engine.step() if o.embedding is not None]
        num_preempted += engine.load().waiting_requests > was_waiting and not embeddings
    engine.check_integrity()
    assert num_preempted > 0, "it lost its blocks at least once"
    check(embeddings, golden.expected[-1:])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"params": SamplingParams(n=2)}, "n"),
        ({"params": SamplingParams(prompt_top_logprobs=0)}, "prompt_top_logprobs"),
        ({"params": SamplingParams(), "num_generated": 1}, "num_generated"),
    ],
)
def test_what_makes_no_sense_with_an_embedding_is_refused(
    golden: Golden, changes: dict[str, Any], field: str
) -> None:
    engine = make_engine(golden.folder)
    with pytest.raises(RequestError) as caught:
        engine.add(Request("x", [3, 4, 5], embed=True, **changes))
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_ARGUMENT, field)


def test_offline(golden: Golden) -> None:
    settings = {"dtype": "float32", "kv_cache_bytes": 2**24, "num_threads": 1}
    with LLM(golden.folder, EngineSettings.model_validate(settings)) as llm:
        check(list(llm.embed(golden.prompts)), golden.expected)
