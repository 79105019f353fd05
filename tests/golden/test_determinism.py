"""Determinism as a mode: a request's logits are the same bits alone and in any batch."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cluster.settings import EngineSettings
from tests.golden.models import CASES, VOCAB_SIZE, save_random
from tests.workers.kernels.builds import NAMES, built_library
from workers.engine.llm import LLM
from workers.engine.request import TokenLogprob
from workers.engine.sampling_params import SamplingParams
from workers.kernels import library
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

OUTPUT = 24
PARAMS = SamplingParams(
    temperature=0.0, max_tokens=OUTPUT, ignore_eos=True, top_logprobs=5, prompt_top_logprobs=2
)
MODELS = [case for case in CASES if case.id in ("qwen3", "qwen3-moe")]


@pytest.fixture(scope="module", params=MODELS, ids=lambda case: case.id)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deterministic")
    save_random(request.param, path)
    Tokenizer(WordLevel({"a": 0})).save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(params=NAMES)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are made of one build of the kernels after the other."""
    built = built_library(request.param)
    monkeypatch.setattr(library, "_machine_library", lambda: built)


def make_llm(folder: Path, **changes: Any) -> LLM:
    settings = {
        "deterministic": True,
        "dtype": "bfloat16",
        "kv_cache_bytes": 2**24,
        "num_threads": 1,
        **changes,
    }
    return LLM(folder, EngineSettings.model_validate(settings))


def logprobs(llm: LLM, prompts: list[list[int]]) -> list[list[list[TokenLogprob]]]:
    return [
        [completion.prompt_logprobs, completion.samples[0].logprobs]
        for completion in llm.generate(prompts, PARAMS)
    ]


@pytest.mark.usefixtures("build")
@pytest.mark.parametrize(
    "changes", [{}, {"quantization": "int8", "kv_cache_dtype": "int8"}], ids=["bf16", "int8"]
)
def test_alone_in_batches_in_chunks_and_after_preemptions(
    folder: Path, changes: dict[str, Any]
) -> None:
    random = Random(5)
    prompts = [random.choices(range(VOCAB_SIZE), k=length) for length in (1, 17, 70, 140)]
    alone = [logprobs(make_llm(folder, **changes), [prompt])[0] for prompt in prompts]
    assert logprobs(make_llm(folder, **changes), prompts) == alone
    for budget in (5, 64):
        assert (
            logprobs(make_llm(folder, max_num_batched_tokens=budget, **changes), prompts) == alone
        )
    tight = make_llm(folder, kv_cache_bytes=_too_few_bytes(folder), **changes)
    assert logprobs(tight, prompts) == alone


def _too_few_bytes(folder: Path) -> int:
    """For all prompts at a time."""
    return 16 * KVCache.bytes_per_block(ModelConfig.read(folder), 16, torch.bfloat16)


def test_it_is_refused_where_it_cannot_be_had(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"engine\.deterministic: got attention 'sdpa'"):
        make_llm(folder, attention="sdpa")
    monkeypatch.setattr(library, "_machine_library", lambda: None)
    with pytest.raises(ValueError, match=r"engine\.deterministic"):
        make_llm(folder)
