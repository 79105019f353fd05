"""Sampling kernels draw what the torch reference draws, on every build, alone and in any batch."""

import math
from collections.abc import Sequence as Rows
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.request import Request
from workers.engine.sampling_noise import gumbel, key_words, row_key
from workers.engine.sampling_params import SamplingParams
from workers.engine.sampling_reference import draw_tokens
from workers.engine.sequence import RequestGroup, Sequence
from workers.kernels.cpu_sampling import CpuSampling, RowParams
from workers.kernels.library import Library

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])

PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-30, 0.3, 1.0, 2.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 50, 300, 10**6]),
    top_p=st.sampled_from([1.0, 0.9999, 0.9, 0.3, 1e-6]),
    min_p=st.sampled_from([0.0, 1e-4, 0.05, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)


def randn(dtype: torch.dtype, seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sample(library: Library, logits: torch.Tensor, params: Rows[SamplingParams]) -> list[int]:
    """The kernels' tokens for rows that all stand at position 3."""
    rows, vocabulary = RowParams(len(params)), logits.shape[1]
    for row, p in enumerate(params):
        top_k = p.top_k if p.top_k < vocabulary else 0
        rows.set(row, p.temperature, p.top_p, p.min_p, top_k, row_key(p.seed, 0, 3))
    out = torch.empty(len(params), dtype=torch.int64)
    CpuSampling(library).sample(logits, rows, out)
    tokens: list[int] = out.tolist()
    return tokens


def reference(logits: torch.Tensor, params: Rows[SamplingParams]) -> list[int]:
    requests = [Request("r", [1, 2, 3], p) for p in params]
    groups = [RequestGroup(r, 0, 0.0, max_output=1, root_hash=b"") for r in requests]
    return draw_tokens(logits.float(), [(Sequence(group, 0), 0) for group in groups])


@DTYPES
def test_tokens_are_those_of_the_reference(library: Library, dtype: torch.dtype) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        params=st.lists(PARAMS, min_size=1, max_size=6),
        vocabulary=st.integers(1, 700),
        scale=st.sampled_from([0.0, 1.0, 3.0, 40.0]),
        seed=st.integers(0, 99),
        is_banned=st.sampled_from([0.0, 0.5, 0.99]),
    )
    def holds(
        params: list[SamplingParams], vocabulary: int, scale: float, seed: int, is_banned: float
    ) -> None:
        logits = randn(dtype, seed, len(params), vocabulary) * scale
        logits[
            randn(torch.float32, seed + 1, len(params), vocabulary).erf() / 2 + 0.5 < is_banned
        ] = -torch.inf
        assert sample(library, logits, params) == reference(logits, params)

    holds()


@DTYPES
def test_large_vocabularies(library: Library, dtype: torch.dtype) -> None:
    """Where whole blocks are skipped, and most noise is never computed."""
    logits = randn(dtype, 0, 40, 32003) * 3
    wishes: list[dict[str, Any]]
    wishes = [{}, {"top_k": 50}, {"top_k": 3000}, {"top_p": 0.9}, {"min_p": 0.05}]
    for filters in wishes:
        params = [SamplingParams(seed=seed, **filters) for seed in range(40)]
        assert sample(library, logits, params) == reference(logits, params)


def test_noise_is_gumbel_s(library: Library) -> None:
    """With equal logits the largest noise wins: the kernels' hash is the reference's, all of it."""
    params = [SamplingParams(seed=seed) for seed in range(200)]
    keys = torch.tensor(key_words([row_key(seed, 0, 3) for seed in range(200)]), dtype=torch.int32)
    noise = gumbel(torch.arange(5000, dtype=torch.int32)[None], keys)
    assert sample(library, torch.zeros(200, 5000), params) == noise.argmax(dim=-1).tolist()


@DTYPES
@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 1000])
def test_the_likeliest_tokens(library: Library, dtype: torch.dtype, vocabulary: int) -> None:
    """And of equal ones the first."""
    logits = (randn(dtype, 0, 50, vocabulary) * 4).round()
    out = torch.empty(50, dtype=torch.int64)
    CpuSampling(library).sample(logits, None, out)
    first = [row.index(max(row)) for row in logits.tolist()]
    assert out.tolist() == first


@DTYPES
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 37, 127, 128, 140])
def test_rows_that_are_not_finite(
    library: Library, dtype: torch.dtype, bad: float, place: int
) -> None:
    logits = randn(dtype, 0, 4, 141)
    logits[1, place] = bad
    logits[2] = -torch.inf
    logits[3, place] = -torch.inf
    for temperature in (0.0, 1.0):
        tokens = sample(library, logits, [SamplingParams(temperature=temperature)] * 4)
        assert [token < 0 for token in tokens] == [False, True, True, False]


@DTYPES
def test_logprobs_are_log_softmax(library: Library, dtype: torch.dtype) -> None:
    @settings(max_examples=40, deadline=None)
    @given(
        vocabulary=st.integers(1, 700),
        num_top=st.integers(0, 20),
        scale=st.sampled_from([0.0, 1.0, 40.0]),
        seed=st.integers(0, 99),
    )
    def holds(vocabulary: int, num_top: int, scale: float, seed: int) -> None:
        num_top = min(num_top, vocabulary)
        logits = randn(dtype, seed, 3, vocabulary) * scale
        token_ids = torch.tensor([0, vocabulary // 2, vocabulary - 1])
        out, top = torch.empty(3), torch.empty(3, num_top)
        top_ids = torch.empty(3, num_top, dtype=torch.int64)
        CpuSampling(library).logprobs(logits, token_ids, out, top_ids, top)
        exact = logits.double().log_softmax(dim=-1)
        own, best = exact[[0, 1, 2], token_ids], exact.topk(num_top).values
        torch.testing.assert_close(out.double(), own, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(top.double(), best, rtol=1e-5, atol=1e-5)
        order = exact.sort(dim=-1, descending=True, stable=True).indices
        assert torch.equal(top_ids, order[:, :num_top])

    holds()


def test_logprobs_of_a_row_that_is_not_finite_are_nan(library: Library) -> None:
    logits = randn(torch.float32, 0, 2, 100)
    logits[0, 99] = torch.nan
    out, top, top_ids = torch.empty(2), torch.empty(2, 3), torch.zeros(2, 3, dtype=torch.int64)
    CpuSampling(library).logprobs(logits, torch.tensor([5, 5]), out, top_ids, top)
    assert out.isnan().tolist() == [True, False]
    assert top.isnan().all(dim=-1).tolist() == [True, False]


def test_results_depend_neither_on_threads_nor_on_other_rows(library: Library) -> None:
    logits = randn(torch.float32, 0, 64, 5000) * 3
    params = [
        params
        for seed in range(0, 64, 4)
        for params in (
            SamplingParams(seed=seed),
            SamplingParams(seed=seed, top_p=0.9),
            SamplingParams(seed=seed, top_k=40, top_p=0.5),
            SamplingParams(temperature=0.0),
        )
    ]
    one_thread = sample(library, logits, params)
    library.set_num_threads(2)
    try:
        assert sample(library, logits, params) == one_thread
    finally:
        library.set_num_threads(1)
    alone = [sample(library, logits[row : row + 1], params[row : row + 1]) for row in range(64)]
    assert [token for (token,) in alone] == one_thread


def test_frequencies_match_the_distribution(library: Library) -> None:
    """Over many seeds, tokens come as often as their softmax says (chi-square, p > 1e-4)."""
    num_draws, probabilities = 20000, torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    logits = probabilities.log().repeat(num_draws, 1)
    tokens = sample(library, logits, [SamplingParams(seed=seed) for seed in range(num_draws)])
    expected = probabilities * num_draws
    found = torch.bincount(torch.tensor(tokens), minlength=6)
    assert float(((found - expected) ** 2 / expected).sum()) < 25.7


def test_arguments_that_do_not_fit_are_named(library: Library) -> None:
    kernels, logits = CpuSampling(library), torch.zeros(3, 8)
    ids, floats = torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    with pytest.raises(TypeError, match="logits"):
        kernels.sample(logits.double(), None, ids)
    with pytest.raises(ValueError, match="logits"):
        kernels.sample(logits.T, None, ids)
    with pytest.raises(TypeError, match="out"):
        kernels.sample(logits, None, ids.int())
    with pytest.raises(ValueError, match="params"):
        kernels.sample(logits, RowParams(2), ids)
    too_many = torch.zeros(3, 9, dtype=torch.int64)
    with pytest.raises(ValueError, match="top_ids"):
        kernels.logprobs(logits, ids, floats, too_many, torch.zeros(3, 9))


def test_the_highest_bound_on_noise_holds() -> None:
    """What the kernels skip blocks by: no noise is larger than the one of the least hash."""
    assert -math.log(-math.log1p(-(0.5 * 2.0**-31))) < 22.2
