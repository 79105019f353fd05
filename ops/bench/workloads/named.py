"""The workloads that are made up: kinds of traffic that stress routing in different ways.

Lengths beside names are medians in tokens at scale 1.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from types import MappingProxyType
from typing import Final

from ops.bench.workloads.draw import Draw
from ops.bench.workloads.session import Session, Turn

_BURST = 24
"""Requests of a burst."""
_BURST_SPEED = 50.0
"""Rate within a burst, as a multiple of the mean rate."""
_LONG_SHARE = 0.1
"""Of mixed requests."""

Script = Callable[[Draw], Iterator[list[Turn]]]
"""Draws the turns of one session after the other, without end."""


def _shared(draw: Draw) -> Iterator[list[Turn]]:
    """Single questions (64) with one of 128 system prompts (1,024) before them; answers of 96."""
    prompts = draw.zipf(128, 1.0)
    for number in count():
        prompt = draw.common("system", prompts.draw(), 1024)
        question = draw.own(f"question {number}", 64)
        yield [Turn([prompt, question], draw.tokens(96))]


def _chat(draw: Draw) -> Iterator[list[Turn]]:
    """Conversations of 1 to 12 turns (48, answers of 128) after one of 16 system prompts (384)."""
    prompts = draw.zipf(16, 1.0)
    for number in count():
        prompt = draw.common("system", prompts.draw(), 384)
        turns = []
        for turn in range(draw.random.randint(1, 12)):
            said = draw.own(f"session {number}, turn {turn}", 48)
            pieces = [said] if turn else [prompt, said]
            turns.append(Turn(pieces, draw.tokens(128), draw.pause_s(5.0) if turn else 0.0))
        yield turns


def _agent(draw: Draw) -> Iterator[list[Turn]]:
    """Tasks (96) of one of 8 agents (instructions and tools: 2,048), which call tools 3 to 15 times
    (48) and read what these say (256)."""
    agents = draw.zipf(8, 0.8)
    for number in count():
        pieces = [draw.common("agent", agents.draw(), 2048), draw.own(f"task {number}", 96)]
        turns = [Turn(pieces, draw.tokens(48))]
        for call in range(draw.random.randint(3, 15)):
            result = draw.own(f"task {number}, result {call}", 256)
            turns.append(Turn([result], draw.tokens(48), draw.pause_s(0.5)))
        yield turns


def _retrieval(draw: Draw) -> Iterator[list[Turn]]:
    """Questions (32) about 4 of 512 documents (512) in any order, after one instruction (128)."""
    documents = draw.zipf(512, 0.9)
    for number in count():
        found = [draw.common("document", d, 512) for d in documents.distinct(4)]
        question = draw.own(f"question {number}", 32)
        yield [Turn([draw.common("instruction", 0, 128), *found, question], draw.tokens(128))]


def _mixed(draw: Draw) -> Iterator[list[Turn]]:
    """Nothing shared: one in ten is long (6,144, answers of 32), the others short (96 and 96)."""
    for number in count():
        is_long = draw.random.random() < _LONG_SHARE
        prompt = draw.own(f"prompt {number}", 6144 if is_long else 96)
        yield [Turn([prompt], draw.tokens(32 if is_long else 96))]


def _bursts(draw: Draw) -> Iterator[list[Turn]]:
    """Bursts of 24 questions (64) about one new prompt (1,536) each; answers of 64."""
    for number in count():
        prompt = draw.common("prompt", number // _BURST, 1536)
        yield [Turn([prompt, draw.own(f"question {number}", 64)], draw.tokens(64))]


SCRIPTS: Final[Mapping[str, Script]] = MappingProxyType(
    {
        "shared": _shared,
        "chat": _chat,
        "agent": _agent,
        "retrieval": _retrieval,
        "mixed": _mixed,
        "burst": _bursts,
    }
)
"""By the names they have on the command line."""


def sessions(name: str, seed: str, requests: int, scale: float = 1.0) -> list[Session]:
    """At least `requests` requests, the last session's end included; the same for the same seed.

    Sessions start at random, so that a mean of one request comes per second. Raises ValueError for
    a name that no workload has.
    """
    if name not in SCRIPTS:
        raise ValueError(f"workload: got {name!r}, expected one of {', '.join(SCRIPTS)}")
    draw = Draw(f"{name}/{seed}", scale)
    scripts = _take(SCRIPTS[name](draw), requests)
    mean_turns = sum(map(len, scripts)) / len(scripts)
    starts_s = _burst_starts(draw) if name == "burst" else _starts(draw, mean_turns)
    drawn = [
        Session(draw.name("session", number), start_s, turns)
        for number, (turns, start_s) in enumerate(zip(scripts, starts_s, strict=False))
    ]
    return sorted(drawn, key=lambda session: session.start_s)


def _take(scripts: Iterator[list[Turn]], requests: int) -> list[list[Turn]]:
    taken: list[list[Turn]] = []
    total = 0
    while total < requests:
        taken.append(next(scripts))
        total += len(taken[-1])
    return taken


def _starts(draw: Draw, mean_gap_s: float) -> Iterator[float]:
    """A Poisson process."""
    start_s = 0.0
    while True:
        start_s += draw.random.expovariate(1 / mean_gap_s)
        yield start_s


def _burst_starts(draw: Draw) -> Iterator[float]:
    """A Poisson process of bursts, each of them a quicker one."""
    for burst_s in _starts(draw, float(_BURST)):
        start_s = burst_s
        for _ in range(_BURST):
            start_s += draw.random.expovariate(_BURST_SPEED)
            yield start_s
