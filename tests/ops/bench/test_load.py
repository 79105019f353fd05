"""The load that is sent is the load that was asked for."""

import asyncio
from collections import Counter
from collections.abc import Callable
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.load import Answer, LoadError, Work, run_load
from ops.bench.load_arrivals import ClosedLoop, OpenLoop


@given(st.integers(1, 40), st.integers(1, 10))
async def test_a_closed_loop_keeps_its_clients_busy_and_no_more(count: int, clients: int) -> None:
    sent: Counter[int] = Counter()
    running, peak = 0, 0

    async def send(index: int, due_s: float) -> None:
        nonlocal running, peak
        sent[index] += 1
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0)
        running -= 1

    await ClosedLoop(clients).drive(count, send)
    assert sent == Counter(range(count))
    assert peak == min(count, clients)


async def test_an_open_loop_does_not_wait_for_answers() -> None:
    all_sent = asyncio.Event()
    dues_s: list[float] = []

    async def send(index: int, due_s: float) -> None:
        dues_s.append(due_s)
        if len(dues_s) == 20:
            all_sent.set()
        await all_sent.wait()

    await OpenLoop(rate_per_s=1000, seed=0).drive(20, send)
    assert dues_s == sorted(dues_s)


@given(st.floats(0.01, 1000), st.integers(0, 2**32))
def test_an_open_loop_repeats_itself_and_keeps_its_rate(rate_per_s: float, seed: int) -> None:
    offsets_s = OpenLoop(rate_per_s, seed).offsets_s(2000)
    assert offsets_s == OpenLoop(rate_per_s, seed).offsets_s(2000)
    gaps_s = [later - sooner for sooner, later in zip([0.0, *offsets_s], offsets_s, strict=False)]
    assert min(gaps_s) >= 0
    assert 0.8 < fmean(gaps_s) * rate_per_s < 1.2


@given(st.integers(1, 20), st.integers(1, 50), st.integers(1, 500), st.text(max_size=5))
def test_prompts_have_the_length_asked_for_and_follow_the_seed(
    requests: int, prompt_tokens: int, vocab_size: int, seed: str
) -> None:
    work = Work(requests, prompt_tokens, output_tokens=1, vocab_size=vocab_size)
    prompts = work.prompts(seed)
    assert prompts == work.prompts(seed)
    assert [len(prompt) for prompt in prompts] == [prompt_tokens] * requests
    assert all(0 <= token_id < vocab_size for prompt in prompts for token_id in prompt)


def test_other_seeds_give_other_prompts() -> None:
    work = Work(requests=4, prompt_tokens=64, output_tokens=1)
    assert work.prompts("0/0") != work.prompts("0/1")


class Scripted:
    """A server that does as the first token of the prompt says."""

    async def model(self) -> str:
        return "scripted"

    async def generate(
        self,
        model: str,
        prompt: list[int],
        output_tokens: int,
        on_tokens: Callable[[], None],
        session_id: str = "",
    ) -> Answer:
        match prompt[0]:
            case 0:
                raise LoadError("QUEUE_FULL", "full")
            case 1:
                on_tokens()
                return Answer(output_tokens - 1)
            case 2:
                return Answer(output_tokens)
        on_tokens()
        await asyncio.sleep(0)
        on_tokens()
        return Answer(output_tokens)

    async def close(self) -> None: ...


@pytest.mark.parametrize("arrivals", [ClosedLoop(2), OpenLoop(1000, seed=0)])
async def test_every_request_is_accounted_for(arrivals: ClosedLoop | OpenLoop) -> None:
    prompts = [[how] for how in (0, 1, 2, 3, 3)]
    exchanges = await run_load(Scripted(), "scripted", prompts, 5, arrivals)
    kinds = Counter(e.error.kind if e.error else "good" for e in exchanges)
    assert kinds == {"QUEUE_FULL": 1, "WRONG_LENGTH": 1, "NO_TEXT": 1, "good": 2}
    for exchange in exchanges:
        times_s = [exchange.sent_s, *exchange.arrivals_s, exchange.ended_s]
        assert times_s == sorted(times_s)
