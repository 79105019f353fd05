"""Engine: in any mix of requests, each gets the tokens that it gets alone, and nothing leaks."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cluster.settings import EngineSettings
from tests.golden.models import CASES, VOCAB_SIZE, save_random
from workers.engine.engine import Engine
from workers.engine.request import FinishReason, Request, SampleOutput
from workers.engine.sampling_params import SamplingParams
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

PROMPT = [5, 6, 7, 8] * 10
BLOCK = 8


@dataclass(frozen=True)
class Wish:
    length: int
    tail: int
    arrives: int
    priority: int
    cancelled_after: int | None
    params: SamplingParams

    @property
    def prompt(self) -> list[int]:
        return [*PROMPT[: self.length], self.tail]


WISHES = st.builds(
    Wish,
    length=st.integers(0, 39),
    tail=st.sampled_from([20, 21]),
    arrives=st.integers(0, 12),
    priority=st.integers(-1, 1),
    cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 10)),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1.0]),
        top_p=st.sampled_from([1.0, 0.9]),
        repetition_penalty=st.sampled_from([1.0, 1.2]),
        frequency_penalty=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 2),
        n=st.sampled_from([1, 1, 2, 4]),
        max_tokens=st.sampled_from([1, 12, 35]),
        min_tokens=st.integers(0, 1),
        ignore_eos=st.booleans(),
        prompt_top_logprobs=st.sampled_from([None, None, 2]),
    ),
)


@pytest.fixture(scope="module", params=["llama", "mistral-window"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (case,) = [case for case in CASES if case.id == request.param]
    path = tmp_path_factory.mktemp(case.id)
    save_random(case, path)
    Tokenizer(WordLevel({"a": 0})).save(str(path / "tokenizer.json"))
    return path


def make_engine(folder: Path, num_blocks: int, **changes: object) -> Engine:
    config = ModelConfig.read(folder)
    size = num_blocks * KVCache.bytes_per_block(config, BLOCK, torch.float32)
    fields = {"dtype": "float32", "block_size": BLOCK, "num_threads": 1, "kv_cache_bytes": size}
    return Engine(folder, EngineSettings.model_validate(fields | changes))


def run(engine: Engine, wishes: list[Wish]) -> list[SampleOutput]:
    """The outputs of all wishes, each at its time."""
    outputs: list[SampleOutput] = []
    for step in range(5000):
        for number, wish in enumerate(wishes):
            if wish.arrives == step:
                engine.add(Request(str(number), wish.prompt, wish.params, priority=wish.priority))
            if wish.cancelled_after is not None and wish.arrives + wish.cancelled_after == step:
                engine.cancel(str(number))
        if engine.has_work:
            outputs += engine.step()
        elif step > max(wish.arrives for wish in wishes):
            return outputs
    raise AssertionError("somebody starves")


Samples = dict[int, tuple[list[int], FinishReason | None]]
"""Tokens and end by the sample's index."""


def samples(outputs: list[SampleOutput], number: int) -> Samples:
    found: Samples = {}
    for output in outputs:
        if output.request_id == str(number):
            tokens, _ = found.get(output.index, ([], None))
            found[output.index] = [*tokens, *output.token_ids], output.finish_reason
    return found


@settings(max_examples=12, deadline=None)
@given(
    wishes=st.lists(WISHES, min_size=2, max_size=14),
    num_blocks=st.integers(12, 24),
    budget=st.sampled_from([1, 5, 16, 64]),
    share=st.booleans(),
    misled=st.booleans(),
)
def test_every_request_gets_what_it_gets_alone(
    folder: Path, wishes: list[Wish], num_blocks: int, budget: int, share: bool, misled: bool
) -> None:
    """Whatever arrives, leaves, is preempted, forked or shared beside it."""
    engine = make_engine(
        folder,
        num_blocks,
        max_num_seqs=6,
        max_num_batched_tokens=budget,
        enable_prefix_caching=share,
    )
    if misled:  # by an output that ends early it learns to start more than has room
        stops = SamplingParams(max_tokens=1, stop_token_ids=tuple(range(VOCAB_SIZE)))
        engine.add(Request("short", [3], stops))
        engine.step()
    outputs = run(engine, wishes)
    engine.check_integrity()
    assert engine.load().free_blocks == engine.load().total_blocks
    alone = make_engine(folder, 200, enable_prefix_caching=False)
    for number, wish in enumerate(wishes):
        found = samples(outputs, number)
        expected = samples(run(alone, [replace(wish, arrives=0, cancelled_after=None)]), 0)
        if wish.cancelled_after is None:
            assert found == expected
        for index, (tokens, _) in found.items():
            assert tokens == expected[index][0][: len(tokens)]
