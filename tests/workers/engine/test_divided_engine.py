"""A model divided among tensor and pipeline ranks: an engine answers as one rank alone does."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.golden.models import VOCAB_SIZE
from tests.workers.engine.divided_model import BLOCK, engine_settings, save_case
from tests.workers.engine.forked_ranks import ForkedRanks
from tests.workers.engine.test_engine_mix import WISHES, Wish, run, samples
from tests.workers.engine.thread_gang import with_ranks
from workers.engine.engine import Engine
from workers.engine.engine_start import start_engine
from workers.engine.request import FinishReason, Request, SampleOutput
from workers.engine.sampling_params import SamplingParams
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

BAD = 9
"""A token whose embedding is not a number."""
LAYOUTS = [{"tensor": 2}, {"pipeline": 2}, {"pipeline": 3}, {"tensor": 2, "pipeline": 2}]
PROMPT = [5, 6, 7, 8] * 12
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
UNSURE = SamplingParams(max_tokens=1, stop_token_ids=tuple(range(VOCAB_SIZE)))
"""Ends at once, from which an engine learns to start more than it has room for."""

REQUESTS = {
    "long": (PROMPT, replace(GREEDY, top_logprobs=2)),
    "short": ([11], GREEDY),
    "beside": ([*PROMPT[:30], 12], GREEDY),
    "penalized": (
        PROMPT[:13],
        replace(GREEDY, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2),
    ),
    "forked": ([12, *PROMPT[:20]], SamplingParams(max_tokens=12, n=3, seed=1, ignore_eos=True)),
    "scored": (PROMPT[:37], SamplingParams(max_tokens=3, n=2, seed=2, prompt_top_logprobs=1)),
    "biased": ([3, 4], replace(GREEDY, logit_bias={17: 4.0}, banned_token_ids=(18, 19))),
    "bad": ([*PROMPT[:20], BAD, *PROMPT[:20]], replace(GREEDY, n=2)),
}
LATER = {
    "again": (PROMPT, GREEDY),
    # Ends within a cached block, of which the first tokens are copied.
    "partly": ([*PROMPT[:45], 30, 31], GREEDY),
}


@pytest.fixture(scope="module", params=["llama", "mistral-window"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory)


def saved(case_id: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_case(case_id, tmp_path_factory.mktemp(case_id))
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][BAD] = torch.nan
    save_file(tensors, path / "model.safetensors")
    return path


class Answer(NamedTuple):
    """What became of one sample."""

    token_ids: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    ends: list[FinishReason]


def answers(outputs: list[SampleOutput]) -> dict[tuple[str, int], Answer]:
    found: dict[tuple[str, int], Answer] = defaultdict(lambda: Answer([], [], [], []))
    for output in outputs:
        answer = found[output.request_id, output.index]
        answer.token_ids.extend(output.token_ids)
        answer.logprobs.extend(one.logprob for one in output.logprobs)
        answer.prompt_logprobs.extend(one.logprob for one in output.prompt_logprobs)
        answer.ends.extend([] if output.finish_reason is None else [output.finish_reason])
    return found


def ask(engine: Engine) -> dict[tuple[str, int], Answer]:
    """All requests, the later ones when the others are done, so that they find their blocks."""
    outputs: list[SampleOutput] = []
    for requests in (REQUESTS, LATER):
        for name, (prompt, params) in requests.items():
            engine.add(Request(name, prompt, params))
        while engine.has_work:
            outputs += engine.step()
    check_empty(engine)
    started = {o.request_id: o.started.cached_prompt_tokens for o in outputs if o.started}
    assert started["again"] > 0
    return answers(outputs)


def check_empty(engine: Engine) -> None:
    engine.check_integrity()
    load = engine.load()
    assert (load.free_blocks, load.running_sequences) == (load.total_blocks, 0)


def check_same(
    found: dict[tuple[str, int], Answer],
    expected: dict[tuple[str, int], Answer],
    atol: float = 1e-4,
) -> None:
    """Tokens and ends equal, and log-probabilities up to rounding."""
    assert found.keys() == expected.keys()
    for key, answer in found.items():
        other = expected[key]
        assert (answer.token_ids, answer.ends) == (other.token_ids, other.ends), key
        assert answer.logprobs == pytest.approx(other.logprobs, abs=atol)
        assert answer.prompt_logprobs == pytest.approx(other.prompt_logprobs, abs=atol)


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_ranks_answer_as_one_does(folder: Path, parallel: dict[str, int]) -> None:
    """Chunks, decodes, hits, forks, log-probabilities, penalties, values that are not finite."""
    expected = ask(Engine(folder, engine_settings()))
    assert expected["bad", 1].ends == [FinishReason.ERROR]
    check_same(with_ranks(folder, engine_settings(parallel=parallel), ask), expected)


def test_processes_that_share_memory(llama: Path, tmp_path: Path) -> None:
    """Kernels do all there, the exchange included, so steps are recorded and played."""
    parallel = {"tensor": 2, "pipeline": 2}
    expected = ask(Engine(llama, engine_settings()))
    ranks = ForkedRanks(tmp_path)
    engine = start_engine(llama, engine_settings(parallel=parallel), lambda: ranks)
    try:
        assert engine.model.is_native
        check_same(ask(engine), expected)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("parallel", "changes", "atol"),
    [
        # A rounding difference before int8 may move an element by a whole step.
        ({"tensor": 2, "pipeline": 2}, {"kv_cache_dtype": "int8"}, 5e-2),
        ({"tensor": 2, "pipeline": 2}, {"attention": "sdpa"}, 1e-4),
        ({"pipeline": 2}, {"quantization": "int8"}, 1e-4),
        ({"pipeline": 2}, {"quantization": "int8_weight_only"}, 1e-4),
    ],
    ids=str,
)
def test_few_bits_and_other_attention(
    llama: Path, parallel: dict[str, int], changes: dict[str, str], atol: float
) -> None:
    expected = ask(Engine(llama, engine_settings(**changes)))
    divided = engine_settings(parallel=parallel, **changes)
    check_same(with_ranks(llama, divided, ask), expected, atol)


@pytest.mark.parametrize("quantization", ["int8", "int8_weight_only"])
def test_parts_of_quantized_matrices(llama: Path, quantization: str) -> None:
    """Their scales are those of the parts, so that they round a little differently."""
    plain = ask(Engine(llama, engine_settings()))["scored", 0].prompt_logprobs
    whole = ask(Engine(llama, engine_settings(quantization=quantization)))
    divided = engine_settings(parallel={"tensor": 2}, quantization=quantization)
    parts = with_ranks(llama, divided, ask)
    error = torch.tensor(whole["scored", 0].prompt_logprobs) - torch.tensor(plain)
    found = torch.tensor(parts["scored", 0].prompt_logprobs) - torch.tensor(plain)
    assert found.abs().mean() < 1.5 * error.abs().mean()


class _Share(NamedTuple):
    num_layers: int
    num_kv_heads: int
    head_dim: int


def small_cache(folder: Path, num_blocks: int, tensor: int = 1, pipeline: int = 1) -> int:
    """Bytes for so many blocks on the rank that has room for the fewest."""
    config = ModelConfig.read(folder)
    share = _Share(
        -(-config.num_layers // pipeline), config.num_kv_heads // tensor, config.head_dim
    )
    return num_blocks * KVCache.bytes_per_block(share, BLOCK, torch.float32)


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_a_cache_that_is_too_small_changes_nothing(llama: Path, parallel: dict[str, int]) -> None:
    """Sequences are preempted while steps of theirs are in flight, and computed again."""
    wishes = [
        Request(str(i), PROMPT[:length], SamplingParams(max_tokens=30, seed=i, n=1 + i % 2))
        for i, length in enumerate((3, 17, 40, 33, 9, 25))
    ]

    def ask_all(engine: Engine) -> dict[tuple[str, int], Answer]:
        outputs: list[SampleOutput] = []
        for requests in ([Request("unsure", [3], UNSURE)], wishes):
            for request in requests:
                engine.add(request)
            while engine.has_work:
                outputs += engine.step()
        check_empty(engine)
        return answers(outputs)

    def squeezed(engine: Engine) -> dict[tuple[str, int], Answer]:
        found = ask_all(engine)
        assert engine.stats.preemptions > 0
        return found

    size = small_cache(llama, 12, **parallel)
    found = with_ranks(llama, engine_settings(parallel=parallel, kv_cache_bytes=size), squeezed)
    check_same(found, ask_all(Engine(llama, engine_settings())))


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_who_leaves_while_steps_are_in_flight_is_heard_of_no_more(
    llama: Path, parallel: dict[str, int]
) -> None:
    def leave(engine: Engine) -> list[SampleOutput]:
        engine.add(Request("cancelled", PROMPT, GREEDY))
        engine.add(Request("late", PROMPT[1:], GREEDY, deadline=monotonic() + 3600))
        engine.add(Request("stays", PROMPT[2:], GREEDY))
        outputs = engine.step() + engine.step()
        engine.cancel("cancelled")
        engine._note_deadline(monotonic() - 1, "late")
        (group,) = [g for g in engine._groups.values() if g.request.request_id == "late"]
        group.request = replace(group.request, deadline=engine._deadlines[0][0])
        engine.add(Request("cancelled", PROMPT[3:], GREEDY))  # a name may come again at once
        told = len(outputs)
        while engine.has_work:
            outputs += engine.step()
        check_empty(engine)
        assert not [o for o in outputs[told:] if o.request_id == "late" and o.token_ids]
        return outputs

    found = answers(with_ranks(llama, engine_settings(parallel=parallel), leave))
    alone = Engine(llama, engine_settings())
    for name, prompt in ("stays", PROMPT[2:]), ("cancelled", PROMPT[3:]):
        alone.add(Request(name, prompt, GREEDY))
    outputs: list[SampleOutput] = []
    while alone.has_work:
        outputs += alone.step()
    assert found["late", 0].ends == [FinishReason.DEADLINE]
    for key, answer in answers(outputs).items():
        assert found[key].token_ids[-16:] == answer.token_ids


@pytest.mark.parametrize("parallel", [{"pipeline": 3}, {"tensor": 2, "pipeline": 2}], ids=str)
@settings(max_examples=4, deadline=None)
@given(
    wishes=st.lists(WISHES, min_size=2, max_size=12),
    num_blocks=st.integers(12, 24),
    budget=st.sampled_from([1, 5, 16, 64]),
    share=st.booleans(),
    misled=st.booleans(),
)
def test_every_request_gets_what_it_gets_alone(
    llama: Path,
    parallel: dict[str, int],
    wishes: list[Wish],
    num_blocks: int,
    budget: int,
    share: bool,
    misled: bool,
) -> None:
    """Whatever arrives, leaves, is preempted, forked or shared beside it."""

    def body(engine: Engine) -> list[SampleOutput]:
        if misled:
            engine.add(Request("short", [3], UNSURE))
            while engine.has_work:
                engine.step()
        outputs = run(engine, wishes)
        check_empty(engine)
        return outputs

    limits = {
        "max_num_seqs": 6,
        "max_num_batched_tokens": budget,
        "enable_prefix_caching": share,
        "kv_cache_bytes": small_cache(llama, num_blocks, **parallel),
    }
    outputs = with_ranks(llama, engine_settings(parallel=parallel, **limits), body)
    alone = Engine(llama, engine_settings(enable_prefix_caching=False))
    for number, wish in enumerate(wishes):
        found = samples(outputs, number)
        expected = samples(run(alone, [replace(wish, arrives=0, cancelled_after=None)]), 0)
        if wish.cancelled_after is None:
            assert found == expected
        for index, (tokens, _) in found.items():
            assert tokens == expected[index][0][: len(tokens)]
