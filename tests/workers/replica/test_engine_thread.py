"""The engine thread: one thread for the engine, batched reports, death told once."""

import asyncio
import threading

import pytest

from cluster.errors import Reason
from cluster.prefix.events import CacheChange, CacheEvent
from tests.workers.replica.fake_engine import POISON, FakeEngine
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams
from workers.replica.engine_thread import EngineDied, EngineThread, Refusal, StepReport


class Listener:
    """Collects what an engine thread tells the event loop."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[StepReport] = asyncio.Queue()
        self.died = asyncio.Event()
        self.threads: set[int] = set()

    def on_report(self, report: StepReport) -> None:
        self.threads.add(threading.get_ident())
        self.reports.put_nowait(report)


def _request(name: str, first_token: int = 1, max_tokens: int = 4) -> Request:
    return Request(name, [first_token], SamplingParams(max_tokens=max_tokens))


async def _started(engine: FakeEngine) -> tuple[EngineThread, Listener]:
    thread, listener = EngineThread(lambda: engine, on_step=lambda _: None), Listener()
    await thread.start(on_report=listener.on_report, on_death=listener.died.set)
    return thread, listener


async def test_outputs_of_a_step_come_in_one_report_on_the_loop() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    thread, listener = await _started(engine)
    thread.submit(_request("warm-up", max_tokens=2))
    for name in "abc":
        thread.submit(_request(name))
    engine.gate.set()
    seen: list[set[str]] = []
    while not seen or len(seen[-1]) != 3:
        seen.append({output.request_id for output in (await listener.reports.get()).outputs})
    assert seen[-1] == {"a", "b", "c"}
    assert listener.threads == {threading.get_ident()}
    assert len(engine.threads) == 1
    assert engine.threads != listener.threads
    await thread.stop()


async def test_an_idle_engine_rests_until_it_has_nothing_left_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And takes requests meanwhile and afterwards."""
    monkeypatch.setattr("workers.replica.engine_thread._IDLE_CHECK_S", 0.01)
    monkeypatch.setattr("workers.replica.engine_thread._REST_S", 0.01)
    engine = FakeEngine(num_rests=3)
    thread, listener = await _started(engine)
    await asyncio.to_thread(engine.rested.wait)
    thread.submit(_request("a", max_tokens=1))
    report = await listener.reports.get()
    assert [output.request_id for output in report.outputs] == ["a"]
    await thread.stop()


async def test_a_request_that_the_engine_refuses_is_reported_and_others_go_on() -> None:
    thread, listener = await _started(FakeEngine())
    thread.submit(Request("bad", [], SamplingParams()))
    thread.submit(_request("good", max_tokens=1))
    refusals: list[Refusal] = []
    done = False
    while not (refusals and done):
        report = await listener.reports.get()
        refusals += report.refusals
        done |= any(output.request_done for output in report.outputs)
    assert [(r.request_id, r.error.reason) for r in refusals] == [("bad", Reason.INVALID_ARGUMENT)]
    await thread.stop()


async def test_a_step_that_raises_is_fatal_and_told_once() -> None:
    thread, listener = await _started(FakeEngine())
    thread.check(max_step_s=60)
    thread.submit(_request("poison", POISON))
    await listener.died.wait()
    with pytest.raises(EngineDied, match="poisoned"):
        thread.check(max_step_s=60)
    with pytest.raises(EngineDied):
        thread.submit(_request("late"))
    await thread.stop()


async def test_a_step_that_hangs_fails_the_check() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    thread, _ = await _started(engine)
    thread.submit(_request("a"))
    await asyncio.to_thread(engine.entered.wait)
    with pytest.raises(EngineDied, match="a step has been running"):
        thread.check(max_step_s=0)
    engine.gate.set()
    await thread.stop()


async def test_an_engine_that_cannot_be_made_raises_at_start() -> None:
    def make() -> FakeEngine:
        raise ValueError("no such model")

    thread = EngineThread(make, on_step=lambda _: None)
    with pytest.raises(ValueError, match="no such model"):
        await thread.start(on_report=lambda _: None, on_death=lambda: None)
    await thread.stop()


async def test_load_counts_what_the_engine_has_not_seen_yet() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    thread, listener = await _started(engine)
    thread.submit(_request("a"))
    await asyncio.to_thread(engine.entered.wait)
    thread.submit(Request("b", [1, 2, 3], SamplingParams(max_tokens=1)))
    assert thread.load.waiting_requests == 1
    assert thread.load.queued_prefill_tokens == 3
    engine.gate.set()
    await listener.reports.get()
    await thread.stop()


async def test_an_engine_that_loses_its_ranks_while_idle_fails_the_check() -> None:
    engine = FakeEngine()
    thread, _ = await _started(engine)
    thread.check(max_step_s=60)
    engine.loss = RuntimeError("rank 1 is lost")
    with pytest.raises(EngineDied, match="rank 1 is lost"):
        thread.check(max_step_s=60)
    await thread.stop()


@pytest.mark.parametrize("prompt", [1, POISON])
async def test_the_engine_is_closed_at_its_end_however_it_comes(prompt: int) -> None:
    engine = FakeEngine()
    thread, listener = await _started(engine)
    thread.submit(_request("a", prompt, max_tokens=1))
    if prompt == POISON:
        await listener.died.wait()
    else:
        await listener.reports.get()
    await thread.stop()
    assert engine.closed.is_set()


async def test_what_a_turn_did_to_the_cache_comes_with_its_outputs() -> None:
    engine = FakeEngine()
    thread, listener = await _started(engine)
    assert engine.is_listened_to
    engine.cache.note(CacheChange.STORED, b"block")
    thread.submit(_request("a", max_tokens=1))
    report = await listener.reports.get()
    assert report.cache_events == [CacheEvent(CacheChange.STORED, [b"block"])]
    assert report.outputs
    await thread.stop()
