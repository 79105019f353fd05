"""A request that goes on in another engine brings forth what it would have in the first one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import RequestError
from cluster.settings import EngineSettings
from workers.engine.engine import Engine
from workers.engine.llm import LLM
from workers.engine.request import FinishReason, Request, TokenLogprob
from workers.engine.sampling_params import SamplingParams

PROMPT = [5, 6, 7, 8] * 5 + [9, 10]
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 7},
    "filtered": {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 2**63},
    "penalties": {
        "temperature": 0.9,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.7,
        "presence_penalty": -0.4,
        "seed": 3,
    },
    "greedy with penalties": {"temperature": 0.0, "frequency_penalty": 1.5},
    "bias": {"logit_bias": {11: 4.0, 12: 3.5}, "banned_token_ids": (13,), "seed": 5},
    "n": {"n": 3, "temperature": 1.0, "seed": 11},
    "n with penalties": {"n": 3, "presence_penalty": 1.0, "repetition_penalty": 1.2, "seed": 1},
    # Few tokens to choose from, so that the stop token would come before min_tokens and does after.
    "min_tokens": {
        "allowed_token_ids": (20, 21, 22),
        "stop_token_ids": (21,),
        "min_tokens": 9,
        "ignore_eos": True,
        "seed": 4,
    },
}


class Answer(NamedTuple):
    """What became of one sample."""

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None
    stop_token_id: int | None


@pytest.fixture(scope="module")
def engines(folder: Path) -> tuple[Engine, Engine]:
    """Two engines of the same model, whose steps are of different sizes."""
    made = []
    for budget in (2048, 7):
        tree = EngineSettings.model_validate(
            {
                "dtype": "float32",
                "kv_cache_bytes": 2**23,
                "num_threads": 1,
                "max_num_batched_tokens": budget,
            }
        )
        made.append(LLM(folder, tree).engine)
    return made[0], made[1]


def run(engine: Engine, request: Request) -> dict[int, Answer]:
    """The samples of a request by index; each token has to stand where its output says."""
    engine.add(request)
    answers = {i: Answer([], [], None, None) for i in request.sample_indices}
    while engine.has_work:
        for output in engine.step():
            answer = answers[output.index]
            assert output.position == request.num_generated + len(answer.token_ids)
            answer.token_ids.extend(output.token_ids)
            answer.logprobs.extend(output.logprobs)
            answers[output.index] = answer._replace(
                finish_reason=output.finish_reason, stop_token_id=output.stop_token_id
            )
    engine.check_integrity()
    return answers


@pytest.mark.parametrize("wishes", WISHES.values(), ids=list(WISHES))
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_cut_anywhere_and_continued_elsewhere(
    engines: tuple[Engine, Engine], wishes: dict[str, Any], data: st.DataObject
) -> None:
    """Tokens, their log-probabilities and the end are those of a run that nothing disturbed."""
    here, there = engines
    params = SamplingParams(**{"max_tokens": 24, "top_logprobs": 2, **wishes})
    whole = run(here, Request("whole", PROMPT, params))
    index = data.draw(st.sampled_from(sorted(whole)), label="sample")
    expected = whole[index]
    cut = data.draw(st.integers(0, len(expected.token_ids) - 1), label="tokens before the cut")
    rest = run(
        there,
        Request(
            "rest",
            PROMPT + expected.token_ids[:cut],
            replace(params, n=1),
            num_generated=cut,
            first_index=index,
        ),
    )[index]
    assert rest.token_ids == expected.token_ids[cut:]
    assert (rest.finish_reason, rest.stop_token_id) == expected[2:]
    assert len(rest.logprobs) == len(rest.token_ids)
    for got, wanted in zip(rest.logprobs, expected.logprobs[cut:], strict=True):
        assert got.token_id == wanted.token_id
        assert got.logprob == pytest.approx(wanted.logprob, abs=1e-4)
        assert [t for t, _ in got.top] == [t for t, _ in wanted.top]


def test_the_tests_own_wishes_end_samples_by_stop_token_and_by_length(
    engines: tuple[Engine, Engine],
) -> None:
    def ends(name: str) -> set[FinishReason | None]:
        params = SamplingParams(**{"max_tokens": 24, **WISHES[name]})
        return {a.finish_reason for a in run(engines[0], Request("r", PROMPT, params)).values()}

    assert ends("min_tokens") == {FinishReason.STOP}
    assert FinishReason.LENGTH in ends("n")


def test_samples_that_have_not_begun_keep_their_indices(engines: tuple[Engine, Engine]) -> None:
    params = SamplingParams(n=3, seed=11, max_tokens=10)
    whole = run(engines[0], Request("whole", PROMPT, params))
    pair = run(engines[1], Request("pair", PROMPT, replace(params, n=2), first_index=1))
    assert pair == {index: whole[index] for index in (1, 2)}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_generated", {"num_generated": len(PROMPT)}),
        ("num_generated", {"num_generated": 20, "params": SamplingParams(max_tokens=20)}),
        ("n", {"num_generated": 1, "params": SamplingParams(n=2)}),
        (
            "prompt_top_logprobs",
            {"num_generated": 1, "params": SamplingParams(prompt_top_logprobs=0)},
        ),
        ("first_index", {"first_index": 2**31}),
    ],
)
def test_what_cannot_go_on_is_refused(
    make_llm: Callable[..., LLM], field: str, changes: dict[str, Any]
) -> None:
    request = replace(Request("r", PROMPT, SamplingParams()), **changes)
    with pytest.raises(RequestError) as caught:
        make_llm().engine.add(request)
    assert caught.value.field == field


def test_the_original_prompt_bounds_the_output(make_llm: Callable[..., LLM]) -> None:
    """Tokens that were generated elsewhere take none of the room that max_tokens counts."""
    engine = make_llm(max_model_len=32).engine
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    rest = run(engine, Request("r", [*PROMPT, 1, 2, 3], params, num_generated=3))
    assert len(rest[0].token_ids) == 7
