"""Engine: requests end as they should, alone, and leave nothing behind."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.errors import Reason, RequestError
from cluster.prefix.block_hash import block_hashes, root_hash
from cluster.prefix.events import CacheChange, CacheEvent
from cluster.settings import EngineSettings
from tests.golden.models import VOCAB_SIZE
from workers.engine.engine import Engine
from workers.engine.llm import LLM
from workers.engine.request import FinishReason, Request, SampleOutput
from workers.engine.sampling_params import SamplingParams

PROMPT = [5, 6, 7, 8] * 10
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)


@pytest.fixture
def engine(make_llm: Callable[..., LLM]) -> Engine:
    return make_llm().engine


def run(engine: Engine) -> list[SampleOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    engine.check_integrity()
    return outputs


def is_empty(engine: Engine) -> bool:
    load = engine.load()
    return load.free_blocks == load.total_blocks and not load.running_sequences


def test_cancel_frees_the_blocks_at_once_and_leaves_others_alone(engine: Engine) -> None:
    engine.add(Request("stays", PROMPT[:3], GREEDY))
    alone = [o.token_ids for o in run(engine)]
    for name in ("stays", "goes"):
        engine.add(Request(name, PROMPT[:3] if name == "stays" else PROMPT, GREEDY))
    first = engine.step()
    before = engine.load().free_blocks
    engine.cancel("goes")
    assert engine.load().free_blocks > before
    rest = first + run(engine)
    assert [o.token_ids for o in rest if o.request_id == "stays"] == alone
    assert is_empty(engine)


def test_cancel_of_a_waiting_and_of_an_unknown_request(make_llm: Callable[..., LLM]) -> None:
    engine = make_llm(max_num_seqs=1).engine
    engine.add(Request("first", PROMPT, GREEDY))
    engine.add(Request("second", PROMPT, GREEDY))
    engine.step()
    engine.cancel("second")
    engine.cancel("nobody")
    assert {o.request_id for o in run(engine)} == {"first"}
    assert is_empty(engine)


def test_a_passed_deadline_ends_running_and_waiting_requests(make_llm: Callable[..., LLM]) -> None:
    engine = make_llm(max_num_seqs=1).engine
    past = monotonic() - 1
    engine.add(Request("running", PROMPT, GREEDY))
    engine.step()
    engine.add(Request("late", PROMPT, GREEDY, deadline=past))
    (late,) = [o for o in engine.step() if o.request_id == "late"]
    assert late.finish_reason is FinishReason.DEADLINE
    assert late.request_done
    assert {o.request_id for o in run(engine)} == {"running"}
    assert is_empty(engine)


@pytest.mark.parametrize("budget", [2048, 13])
def test_a_request_with_values_that_are_not_finite_fails_alone(
    make_llm: Callable[..., LLM], budget: int
) -> None:
    """The token 9 is given a NaN embedding: only the request that has it fails.

    Both requests start with the same blocks, and the bad one computes them first.
    """
    engine = make_llm(max_num_batched_tokens=budget).engine
    engine.add(Request("good", PROMPT, GREEDY))
    expected = [o.token_ids for o in run(engine)]
    engine.clear_prefix_cache()
    assert engine.model.embedding is not None
    engine.model.embedding[9] = torch.nan
    engine.add(Request("bad", [*PROMPT[:20], 9, *PROMPT[:20]], GREEDY))
    engine.add(Request("good", PROMPT, GREEDY))
    outputs = run(engine)
    (bad,) = [o for o in outputs if o.request_id == "bad"]
    assert bad.finish_reason is FinishReason.ERROR
    assert "finite" in bad.error
    assert [o.token_ids for o in outputs if o.request_id == "good"] == expected
    # Whoever gets its blocks next is not harmed either.
    engine.clear_prefix_cache()
    for name in map(str, range(20)):
        engine.add(Request(name, PROMPT, GREEDY))
    assert all(o.finish_reason is not FinishReason.ERROR for o in run(engine))


def test_samples_that_end_before_they_are_forked_are_all_told_of(engine: Engine) -> None:
    assert engine.model.embedding is not None
    engine.model.embedding[9] = torch.nan
    params = SamplingParams(n=3, max_tokens=4)
    engine.add(Request("bad", [9], params))
    engine.add(Request("late", PROMPT, params, deadline=monotonic() - 1))
    outputs = run(engine)
    for name, reason in ("bad", FinishReason.ERROR), ("late", FinishReason.DEADLINE):
        ends = [o for o in outputs if o.request_id == name]
        assert sorted(o.index for o in ends) == [0, 1, 2]
        assert {o.finish_reason for o in ends} == {reason}
        assert [o.request_done for o in ends] == [False, False, True]
    assert is_empty(engine)


def test_deadlines_of_requests_that_have_ended_are_forgotten(engine: Engine) -> None:
    far = monotonic() + 3600
    for number in range(3000):
        engine.add(Request(str(number), PROMPT, GREEDY, deadline=far))
        engine.cancel(str(number))
    assert len(engine._deadlines) < 1100


def test_rates_and_counters_tell_prefill_from_decode(engine: Engine) -> None:
    for name in "abc":
        engine.add(Request(name, PROMPT, GREEDY))
    run(engine)
    assert engine.stats.prefill_tokens == 3 * len(PROMPT)
    assert engine.stats.decode_tokens == 3 * 20
    load = engine.load()
    assert load.prefill_tokens_per_s > 0
    assert load.decode_tokens_per_s > 0


@pytest.mark.parametrize(
    ("request_changes", "field"),
    [
        ({"prompt_token_ids": []}, "prompt"),
        ({"prompt_token_ids": [VOCAB_SIZE]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1] * 512}, "prompt"),
        ({"params": SamplingParams(max_tokens=500)}, "max_tokens"),
        ({"params": SamplingParams(n=100)}, "n"),
        ({"params": SamplingParams(logit_bias={VOCAB_SIZE: 1.0})}, "logit_bias"),
        ({"params": SamplingParams(stop_token_ids=(-1,))}, "stop_token_ids"),
        (
            {"params": SamplingParams(allowed_token_ids=(3, 4), banned_token_ids=(4, 3, 5))},
            "banned_token_ids",
        ),
        ({"params": SamplingParams(banned_token_ids=(*range(VOCAB_SIZE),))}, "banned_token_ids"),
        (
            {"params": SamplingParams(allowed_token_ids=(2, 7), stop_token_ids=(7,), min_tokens=1)},
            "banned_token_ids",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_field(
    make_llm: Callable[..., LLM], request_changes: dict[str, Any], field: str
) -> None:
    engine = make_llm(max_num_seqs=8).engine
    fields = {"request_id": "r", "prompt_token_ids": PROMPT, "params": GREEDY, **request_changes}
    with pytest.raises(RequestError) as caught:
        engine.add(Request(**fields))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.field == field
    assert not engine.has_work


def test_a_request_longer_than_the_cache_is_refused(make_llm: Callable[..., LLM]) -> None:
    engine = make_llm(kv_cache_bytes=2**16).engine
    blocks = engine.load().total_blocks
    with pytest.raises(RequestError, match="KV cache"):
        engine.add(Request("long", [1] * 16 * blocks, GREEDY))


def test_a_full_queue_refuses(folder: Path) -> None:
    settings = EngineSettings(max_waiting_requests=2, kv_cache_bytes=2**23, num_threads=1)
    engine = Engine(folder, settings)
    for name in "ab":
        engine.add(Request(name, PROMPT, GREEDY))
    with pytest.raises(RequestError) as caught:
        engine.add(Request("c", PROMPT, GREEDY))
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s is not None
    assert {o.request_id for o in run(engine)} == {"a", "b"}


def test_sampled_tokens_are_the_same_alone_batched_and_after_preemption(
    make_llm: Callable[..., LLM],
) -> None:
    prompts = [PROMPT[:length] for length in (3, 17, 40, 33, 9, 25)]
    params = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=40, ignore_eos=True, n=2, top_p=p)
        for seed, p in enumerate((1.0, 0.9, 0.5, 1.0, 0.95, 0.7))
    ]
    alone = [make_llm().generate([p], w)[0].samples for p, w in zip(prompts, params, strict=True)]
    batched = [completion.samples for completion in make_llm().generate(prompts, params)]
    assert batched == alone
    assert all(one.token_ids != two.token_ids for one, two in alone)
    small = make_llm(kv_cache_bytes=2**16 * 3)
    unsure = SamplingParams(max_tokens=1, stop_token_ids=tuple(range(VOCAB_SIZE)))
    small.generate([[3]] * 8, unsure)
    wishes = [
        SamplingParams(temperature=1.0, seed=w.seed, max_tokens=40, n=2, top_p=w.top_p)
        for w in params
    ]
    squeezed = small.generate(prompts, wishes)
    assert small.engine.stats.preemptions > 0
    for completion, expected in zip(squeezed, alone, strict=True):
        for sample, whole in zip(completion.samples, expected, strict=True):
            assert sample.token_ids == whole.token_ids[: len(sample.token_ids)]


def test_prompt_and_output_logprobs_equal_transformers(
    folder: Path, make_llm: Callable[..., LLM]
) -> None:
    params = SamplingParams(
        temperature=0.0, max_tokens=4, ignore_eos=True, top_logprobs=2, prompt_top_logprobs=3
    )
    (completion,) = make_llm(max_num_batched_tokens=7).generate([PROMPT], params)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = PROMPT + completion.samples[0].token_ids
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    found = [*completion.prompt_logprobs, *completion.samples[0].logprobs]
    assert [one.token_id for one in found] == tokens[1:]
    for row, one in enumerate(found):
        assert one.logprob == pytest.approx(float(expected[row, one.token_id]), abs=1e-4)
        assert [p for _, p in one.top] == pytest.approx(
            expected[row].topk(len(one.top)).values.tolist(), abs=1e-4
        )
    assert [len(one.top) for one in found] == [3] * (len(PROMPT) - 1) + [2] * 4


def test_tenants_with_different_salts_do_not_share_prefixes(engine: Engine) -> None:
    def cached(salt: bytes) -> int:
        engine.add(Request("r", PROMPT, GREEDY, cache_salt=salt))
        (started,) = [o.started for o in run(engine) if o.started]
        return started.cached_prompt_tokens

    assert [cached(b"a"), cached(b"a"), cached(b"b"), cached(b"b")] == [0, 39, 0, 39]


def test_samples_of_one_request_share_the_prompts_blocks(engine: Engine) -> None:
    engine.add(Request("r", PROMPT, SamplingParams(n=8, max_tokens=8, ignore_eos=True)))
    engine.step()
    load = engine.load()
    assert load.running_sequences == 8
    assert load.total_blocks - load.free_blocks == 3  # 40 tokens in blocks of 16, held together
    engine.step()
    load = engine.load()
    assert load.total_blocks - load.free_blocks == 2 + 8  # the last block was copied on write
    assert {o.index for o in run(engine) if o.finish_reason} == set(range(8))
    assert is_empty(engine)


def test_a_prompt_computed_is_told_by_the_hashes_that_routers_know(engine: Engine) -> None:
    """Of whole blocks, and nothing as long as nobody listens."""
    engine.add(Request("unheard", PROMPT[1:], GREEDY))
    run(engine)
    assert engine.take_cache_events() == []
    engine.clear_prefix_cache()
    engine.listen_to_cache()
    engine.add(Request("heard", PROMPT, GREEDY, cache_salt=b"tenant"))
    run(engine)
    card = engine.card("model")
    root = root_hash(card.fingerprint, card.block_size, salt=b"tenant")
    told = [block for event in engine.take_cache_events() for block in event.hashes]
    known = block_hashes(root, PROMPT, card.block_size)
    assert told[: len(known)] == known
    assert len(told) == (len(PROMPT) + 20 - 1) // card.block_size
    engine.clear_prefix_cache()
    assert engine.take_cache_events() == [CacheEvent(CacheChange.CLEARED, [])]
