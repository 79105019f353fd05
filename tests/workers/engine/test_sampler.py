"""Sampler: draws follow the distribution asked for and depend on seed, position, logits only."""

import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.logits_rules import LogitsRules
from workers.engine.logprobs import token_logprobs
from workers.engine.request import Request
from workers.engine.sampler import Sampler
from workers.engine.sampling_noise import gumbel, key_words, row_key
from workers.engine.sampling_params import SamplingParams
from workers.engine.sequence import RequestGroup, Sequence
from workers.kernels.cpu_sampling import CpuSampling
from workers.kernels.library import load_library

VOCAB = 3000

MakeSampler = Callable[[tuple[int, ...]], Sampler]
"""For a model with these end tokens."""


@pytest.fixture(scope="module", params=["torch", "kernels"])
def kernels(request: pytest.FixtureRequest) -> CpuSampling | None:
    """None, which leaves the work to torch, and the CPU kernels."""
    if request.param == "torch":
        return None
    library = load_library()
    if library is None:
        pytest.skip("the CPU kernels cannot be had")
    return CpuSampling(library)


@pytest.fixture(scope="module")
def make_sampler(kernels: CpuSampling | None) -> MakeSampler:
    return lambda eos_token_ids: Sampler(eos_token_ids, kernels)


def make_sequence(params: SamplingParams, output: list[int] | None = None) -> Sequence:
    request = Request("r", [1, 2, 3], params)
    sequence = Sequence(RequestGroup(request, 0, 0.0, max_output=100, root_hash=b""), 0)
    for token_id in output or []:
        sequence.append(token_id)
    return sequence


def draw(
    sampler: Sampler,
    logits: torch.Tensor,
    params: SamplingParams,
    output: list[int] | None = None,
) -> int:
    (one,) = sampler.sample(logits.clone()[None], [(make_sequence(params, output), 0)])
    assert not one.error
    return one.token_id


def random_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 7, 2000, 10**6]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.1]),
    min_p=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(max_examples=60, deadline=None)
@given(params=st.lists(PARAMS, min_size=1, max_size=8), data=st.data())
def test_a_row_draws_the_same_in_any_batch(
    make_sampler: MakeSampler, params: list[SamplingParams], data: st.DataObject
) -> None:
    logits = random_logits(data.draw(st.integers(0, 5)), len(params))
    if data.draw(st.booleans()):  # as a bfloat16 head makes them, where many are equal
        logits = logits.bfloat16().float()
    targets = [(make_sequence(p), index) for index, p in enumerate(params)]
    together = make_sampler((0,)).sample(logits.clone(), targets)
    for row, target in enumerate(targets):
        (alone,) = make_sampler((0,)).sample(logits[row].clone()[None], [target])
        assert alone == together[row]


@settings(max_examples=40, deadline=None)
@given(params=PARAMS, seed=st.integers(0, 5))
def test_only_tokens_that_the_filters_leave_are_drawn(
    make_sampler: MakeSampler, params: SamplingParams, seed: int
) -> None:
    logits = random_logits(seed)[0]
    token_id = draw(make_sampler((0,)), logits, params)
    scaled = logits.double() / (params.temperature or 1e-9)
    rank = int((scaled > scaled[token_id]).sum())
    assert rank < (params.top_k or VOCAB)
    kept = scaled.sort(descending=True).values[: params.top_k or VOCAB].softmax(-1)
    assert rank == 0 or float(kept[:rank].sum()) < params.top_p + 1e-5
    assert float(scaled[token_id] - scaled.max()) >= (
        torch.tensor(params.min_p).log() - 1e-4 if params.min_p else -torch.inf
    )


@pytest.mark.parametrize("extra", [{}, {"top_k": 4}, {"top_p": 0.9}, {"min_p": 0.05}])
def test_frequencies_match_the_distribution(
    make_sampler: MakeSampler, extra: Mapping[str, float]
) -> None:
    """Over many seeds, tokens come as often as the filtered softmax says (chi-square, p > 1e-4)."""
    probabilities = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    keep = {"top_k": 4, "top_p": 4, "min_p": 5}.get(next(iter(extra), ""), 6)
    expected = probabilities[:keep] / probabilities[:keep].sum()
    num_draws = 4000
    logits = probabilities.log().repeat(num_draws, 1)
    params = [SamplingParams(seed=seed, **extra) for seed in range(num_draws)]  # type: ignore[arg-type]
    drawn = make_sampler((0,)).sample(logits, [(make_sequence(p), 0) for p in params])
    counts = Counter(one.token_id for one in drawn)
    assert set(counts) <= set(range(keep))
    chi2 = sum(
        (counts[i] - num_draws * float(p)) ** 2 / (num_draws * float(p))
        for i, p in enumerate(expected)
    )
    assert chi2 < 25.7, counts  # the 1e-4 quantile of chi-square with 5 degrees of freedom


def test_positions_and_samples_draw_independently(make_sampler: MakeSampler) -> None:
    """The pairs drawn at two positions, or by two samples, are uncorrelated."""
    logits = torch.zeros(2000, 2)
    params = [SamplingParams(seed=seed) for seed in range(2000)]

    def bits(index: int, output: list[int]) -> torch.Tensor:
        targets = [(make_sequence(p, output), index) for p in params]
        draws = make_sampler((0,)).sample(logits.clone(), targets)
        return torch.tensor([one.token_id for one in draws], dtype=torch.float32)

    base = bits(0, [])
    for other in (bits(1, []), bits(0, [1]), bits(0, [1, 1])):
        correlation = float(torch.corrcoef(torch.stack([base, other]))[0, 1])
        assert abs(correlation) < 0.1
        assert 0.45 < float(other.mean()) < 0.55


@pytest.mark.parametrize("filters", [{"top_k": 2}, {"top_p": 0.3}, {"top_k": 4, "top_p": 0.1}])
def test_equal_tokens_all_stay_or_all_go(
    make_sampler: MakeSampler, filters: dict[str, Any]
) -> None:
    """Whichever of them the sort puts first: here more are equal than are sorted at first."""
    logits = torch.full((2000, VOCAB), -20.0)
    logits[:, 1000:2500] = 3.0
    params = [SamplingParams(seed=seed, **filters) for seed in range(2000)]
    drawn = make_sampler((0,)).sample(logits, [(make_sequence(p), 0) for p in params])
    tokens = [one.token_id for one in drawn]
    assert all(1000 <= token_id < 2500 for token_id in tokens)
    assert len(set(tokens)) > 1000


def test_large_noise_is_fine_grained() -> None:
    """What the unlikeliest tokens win by is as rare as it should be, and has hardly any ties."""
    num_noises = 2**22
    keys = torch.tensor(key_words([row_key(7, 0, 0)]), dtype=torch.int32)
    noise = gumbel(torch.arange(num_noises, dtype=torch.int32)[None], keys)[0]
    for bound in (6.0, 9.0):
        expected = num_noises * -math.expm1(-math.exp(-bound))
        assert abs(int((noise > bound).sum()) - expected) < 5 * expected**0.5
    largest = noise.topk(1000).values
    assert len(set(largest.tolist())) > 990


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1e-38, 1e-45, 1e-300])
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}])
def test_the_lowest_temperatures_are_greedy(
    make_sampler: MakeSampler, temperature: float, filters: dict[str, Any]
) -> None:
    logits = random_logits(7)[0]
    params = SamplingParams(temperature=temperature, **filters)
    assert draw(make_sampler((0,)), logits, params) == int(logits.argmax())


def test_extreme_parameters_draw_a_token(make_sampler: MakeSampler) -> None:
    for params in (
        SamplingParams(temperature=100.0, seed=2**64 - 1, top_p=1.5e-45),
        SamplingParams(temperature=100.0, min_p=1.0, top_k=2**31),
        SamplingParams(temperature=1.0, top_k=1, top_p=1.5e-45, min_p=1e-45),
    ):
        logits = random_logits(8)[0]
        assert draw(make_sampler((0,)), logits, params) == int(logits.argmax())


def test_greedy_takes_the_likeliest(make_sampler: MakeSampler) -> None:
    logits = random_logits(1)[0]
    assert draw(make_sampler((0,)), logits, SamplingParams(temperature=0.0)) == int(logits.argmax())


def test_penalties_equal_transformers(kernels: CpuSampling | None) -> None:
    """Repetition penalty as transformers' processor; counts as OpenAI documents them."""
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = random_logits(2)[0]
    sequence = make_sequence(SamplingParams(repetition_penalty=1.3), [7, 7, 9])
    ours = logits.clone()
    LogitsRules(sequence, (), ours.device).apply(ours, sequence, kernels)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.tensor([sequence.token_ids]), logits.clone()[None]
    )[0]
    torch.testing.assert_close(ours, theirs)
    ours = logits.clone()
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    sequence = make_sequence(params, [7, 7, 9])
    LogitsRules(sequence, (), ours.device).apply(ours, sequence, kernels)
    theirs = logits.clone()
    theirs[7] -= 2 * 0.5 + 0.25
    theirs[9] -= 0.5 + 0.25
    torch.testing.assert_close(ours, theirs)


def test_bias_allowed_and_banned_tokens(make_sampler: MakeSampler) -> None:
    logits = random_logits(3)[0]
    best = int(logits.argmax())
    assert (
        draw(make_sampler((0,)), logits, SamplingParams(temperature=0, logit_bias={5: 100.0})) == 5
    )
    assert (
        draw(make_sampler((0,)), logits, SamplingParams(temperature=0, banned_token_ids=(best,)))
        != best
    )
    assert draw(
        make_sampler((0,)), logits, SamplingParams(temperature=1, allowed_token_ids=(8, 9))
    ) in (8, 9)


def test_no_end_before_min_tokens(make_sampler: MakeSampler) -> None:
    logits = torch.zeros(VOCAB)
    logits[0], logits[4] = 50.0, 40.0
    params = SamplingParams(temperature=0, min_tokens=2, stop_token_ids=(4,))
    assert draw(make_sampler((0,)), logits, params, [9]) not in (0, 4)
    assert draw(make_sampler((0,)), logits, params, [9, 9]) == 0


def test_a_row_that_is_not_finite_fails_alone(make_sampler: MakeSampler) -> None:
    logits = random_logits(4, 3)
    logits[1, 17] = torch.nan
    targets = [(make_sequence(SamplingParams(temperature=t)), 0) for t in (0.0, 1.0, 1.0)]
    clean = make_sampler((0,)).sample(random_logits(4, 3), targets)
    dirty = make_sampler((0,)).sample(logits, targets)
    assert dirty[1].error
    assert (dirty[0], dirty[2]) == (clean[0], clean[2])


def test_a_row_whose_parameters_cannot_be_applied_fails_alone(make_sampler: MakeSampler) -> None:
    """Here the model's end token lies outside its vocabulary, which matters to min_tokens."""
    params = [SamplingParams(temperature=t, min_tokens=m) for t, m in ((0, 0), (1, 1), (1, 0))]
    targets = [(make_sequence(p), 0) for p in params]
    clean = make_sampler((0,)).sample(random_logits(4, 3), targets)
    dirty = make_sampler((VOCAB,)).sample(random_logits(4, 3), targets)
    assert "parameters" in dirty[1].error
    assert (dirty[0], dirty[2]) == (clean[0], clean[2])


def test_a_row_with_every_token_banned_fails(make_sampler: MakeSampler) -> None:
    params = SamplingParams(allowed_token_ids=(3,), banned_token_ids=(3,))
    (one,) = make_sampler((0,)).sample(random_logits(5), [(make_sequence(params), 0)])
    assert one.error


def test_rules_follow_a_growing_sequence(kernels: CpuSampling | None) -> None:
    """What is kept of a sequence between steps gives what a fresh look at it would."""
    params = SamplingParams(
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias={7: 1.0},
        banned_token_ids=(9,),
        stop_token_ids=(4,),
        min_tokens=50,
    )
    sequence = make_sequence(params)
    kept = LogitsRules(sequence, (0,), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for token_id in torch.randint(0, 150, (200,), generator=generator).tolist():
        sequence.append(token_id)
        ours, fresh = random_logits(2).repeat(2, 1)
        kept.apply(ours, sequence, kernels)
        LogitsRules(sequence, (0,), torch.device("cpu")).apply(fresh, sequence)
        assert torch.equal(ours, fresh)
        assert bool(ours[4].isinf()) == (sequence.num_output < 50)


def test_what_is_kept_of_a_sequence_goes_with_it() -> None:
    sampler = Sampler((0,))
    sequence = make_sequence(SamplingParams(repetition_penalty=1.5))
    sampler.sample(random_logits(1), [(sequence, 0)])
    gone = weakref.ref(sequence)
    del sequence
    gc.collect()
    assert gone() is None


def test_logprobs_are_log_softmax(kernels: CpuSampling | None) -> None:
    logits = random_logits(6, 2)
    expected = logits.log_softmax(-1)
    for row, found in enumerate(token_logprobs(logits, [11, 12], 3, kernels)):
        assert found.logprob == pytest.approx(float(expected[row, found.token_id]), abs=1e-5)
        best = expected[row].topk(3)
        assert [token_id for token_id, _ in found.top] == best.indices.tolist()
        assert [p for _, p in found.top] == pytest.approx(best.values.tolist(), abs=1e-5)
