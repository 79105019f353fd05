"""Engines take turns, alone on the machine, and one that fails does not stop the others."""

from dataclasses import replace

import pytest

from ops.bench.peers import turns
from ops.bench.peers.engine_spec import EngineSpec
from ops.bench.peers.process import Answer, PeerError
from ops.bench.peers.turns import RSS, START, Comparison, Turns
from ops.bench.peers.works import WORKS

A = EngineSpec(name="a", venv="x", module="x", prefix_caching=True)
B = replace(A, name="b", prefix_caching=False)
DECODE, PREFILL, PREFIX_HIT, BATCH = WORKS
VOCAB = 50


class FakeMachine:
    """Engines that answer in constant time; whoever runs out of turn is found out."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.asked: list[tuple[str, list[list[int]], int]] = []
        self.fail_at: dict[str, int] = {}
        self.live = 0

    def launch(self, engine: EngineSpec) -> "FakeEngine":
        if self.fail_at.get(engine.name) == 0:
            raise PeerError("not installed")
        self.running.add(engine.name)
        self.live += 1
        return FakeEngine(self, engine.name)


class FakeEngine:
    def __init__(self, machine: FakeMachine, name: str) -> None:
        self._machine, self._name = machine, name

    def ask(self, prompts: list[list[int]], output_tokens: int) -> Answer:
        assert self._machine.running == {self._name}
        self._machine.asked.append((self._name, prompts, output_tokens))
        if len(self._machine.asked) == self._machine.fail_at.get(self._name):
            raise PeerError("out of memory")
        return Answer([[0] * output_tokens] * len(prompts), seconds=2.0, first_s=1.0)

    def pause(self) -> None:
        self._machine.running.discard(self._name)

    def resume(self) -> None:
        self._machine.running.add(self._name)

    def cpu_seconds(self) -> float:
        return 0.0

    def peak_bytes(self) -> int:
        return 3 * 2**20

    def close(self) -> None:
        self._machine.running.discard(self._name)
        self._machine.live -= 1


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests is not idle."""
    monkeypatch.setattr(turns, "busy_seconds", lambda: 0.0)


def compare(machine: FakeMachine, *works: str, runs: int = 2, starts: bool = False) -> Comparison:
    wanted = [work for work in WORKS if work.name in works]
    turn = Turns([A, B], machine.launch, VOCAB, lambda _: None)
    comparison = turn.compare(wanted, runs, starts=starts)
    assert machine.live == 0
    return comparison


def test_engines_alternate_within_each_run_after_a_warm_up() -> None:
    machine = FakeMachine()
    comparison = compare(machine, "prefill", "decode")
    of_work = [(name, output) for name, _, output in machine.asked[2:]]
    assert of_work == [("a", 128), ("b", 128), ("a", 1), ("b", 1)] * 3
    assert [len(samples) for samples in comparison.samples["a"].values()] == [2, 2]
    assert comparison.samples["b"]["prefill"][0].value == 1024 / 2.0


def test_engines_get_the_same_prompts_and_no_prompt_comes_twice() -> None:
    machine = FakeMachine()
    compare(machine, "prefill", runs=3)
    prompts = {
        name: [tuple(prompts[0]) for who, prompts, _ in machine.asked if who == name]
        for name in ("a", "b")
    }
    assert prompts["a"] == prompts["b"]
    assert len(set(prompts["a"])) == len(prompts["a"])


def test_only_engines_that_cache_prefixes_are_asked_for_hits() -> None:
    machine = FakeMachine()
    comparison = compare(machine, "prefix_hit", runs=1)
    assert comparison.samples.keys() == {"a"}
    *_, (_, [first], _), (_, [again], _) = machine.asked
    assert first[:-1] == again[:-1]


@pytest.mark.parametrize("when", [0, 2, 6])
def test_an_engine_that_fails_drops_out_with_its_reason(when: int) -> None:
    machine = FakeMachine()
    machine.fail_at["b"] = when
    comparison = compare(machine, "prefill", "batch")
    assert comparison.failures == {"b": "not installed" if when == 0 else "out of memory"}
    assert comparison.samples.keys() == {"a"}
    assert len(comparison.samples["a"]["batch"]) == 2


def test_starts_are_of_new_processes() -> None:
    machine = FakeMachine()
    comparison = compare(machine, starts=True, runs=2)
    assert comparison.samples["a"].keys() == {START, RSS}
    assert [sample.value for sample in comparison.samples["b"][RSS]] == [3.0, 3.0]
    assert len(machine.asked) == 2 + 2 * 2
