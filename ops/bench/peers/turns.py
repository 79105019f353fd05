"""Engines in turn within each run, so that a drift of the machine's speed meets them alike."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Protocol, TypeAlias

from ops.bench.peers.engine_spec import EngineSpec
from ops.bench.peers.proc import busy_seconds
from ops.bench.peers.process import Answer, PeerError
from ops.bench.peers.samples import Reading, Sample, take
from ops.bench.peers.works import DECODE_PROMPT, Work, draw_from

START = "start"
RSS = "rss"


class Running(Protocol):
    """An engine's process; see `process.Peer`."""

    def ask(self, prompts: list[list[int]], output_tokens: int) -> Answer:
        """Generate. Raises PeerError."""

    def pause(self) -> None:
        """Stop it."""

    def resume(self) -> None:
        """Let it go on."""

    def cpu_seconds(self) -> float:
        """CPU time so far."""

    def peak_bytes(self) -> int:
        """Most memory resident so far."""

    def close(self) -> None:
        """End it."""


Launch: TypeAlias = Callable[[EngineSpec], Running]
"""Starts an engine's process. Raises PeerError."""
Tell: TypeAlias = Callable[[str], None]
"""Shows how far things are."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples by engine and work, one for each run, and why engines are missing."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, engine: str, work: str, sample: Sample) -> None:
        """Keep a sample."""
        self.samples.setdefault(engine, {}).setdefault(work, []).append(sample)

    def fail(self, engine: str, error: PeerError) -> None:
        """An engine that failed has no figures: part of them would mislead."""
        self.samples.pop(engine, None)
        self.failures[engine] = str(error)


class Turns:
    """Engines that are loaded once, and do each work in turn; an engine that fails drops out."""

    def __init__(
        self, engines: Sequence[EngineSpec], launch: Launch, vocab_size: int, tell: Tell
    ) -> None:
        self._engines = list(engines)
        self._launch = launch
        self._vocab_size = vocab_size
        self._tell = tell
        self._running: dict[str, Running] = {}
        self._comparison = Comparison()

    def compare(self, works: Sequence[Work], runs: int, *, starts: bool) -> Comparison:
        """Do all works `runs` times after a warm-up; with `starts`, also start as often."""
        try:
            for engine in self._engines:
                self._attempt(engine, "loading", self._load)
            for run in range(-1, runs):
                which = "warm-up" if run < 0 else f"run {run + 1} of {runs}"
                for work in works:
                    for engine in self._able(work):
                        act = partial(self._turn, work=work, run=run)
                        self._attempt(engine, f"{work.name}, {which}", act)
                for engine in self._able() if starts and run >= 0 else ():
                    self._attempt(engine, f"start, {which}", self._start)
        finally:
            # Some take seconds to end, so all are told at the same time.
            with ThreadPoolExecutor(max(len(self._running), 1)) as pool:
                list(pool.map(lambda process: process.close(), self._running.values()))
        return self._comparison

    def _able(self, work: Work | None = None) -> list[EngineSpec]:
        """Engines that have not failed and can do the work."""
        return [
            engine
            for engine in self._engines
            if engine.name in self._running
            and (work is None or engine.prefix_caching or not work.needs_prefix_caching)
        ]

    def _attempt(self, engine: EngineSpec, what: str, act: Callable[[EngineSpec], None]) -> None:
        self._tell(f"{engine.name}: {what}")
        try:
            act(engine)
        except PeerError as error:
            self._tell(f"{engine.name}: {error}")
            self._comparison.fail(engine.name, error)
            process = self._running.pop(engine.name, None)
            if process is not None:
                process.close()

    def _load(self, engine: EngineSpec) -> None:
        process = self._running[engine.name] = self._launch(engine)
        process.ask(draw_from(self._vocab_size, "load")(1, DECODE_PROMPT), 1)
        process.pause()

    def _turn(self, engine: EngineSpec, work: Work, run: int) -> None:
        process = self._running[engine.name]

        def measure(attempt: int) -> float:
            draw = draw_from(self._vocab_size, f"{work.name}/{run}/{attempt}")
            return work.measure(process.ask, draw)

        process.resume()
        if run < 0:
            measure(0)
        else:
            sample = take(measure, lambda: _read(process.cpu_seconds()), _cores())
            self._comparison.add(engine.name, work.name, sample)
        process.pause()

    def _start(self, engine: EngineSpec) -> None:
        """Another process of the engine, for as long as it takes to have the first token."""
        started = _Started(partial(self._launch, engine), self._vocab_size)
        try:
            sample = take(started.again, lambda: _read(started.cpu_seconds()), _cores())
            peak_mib = started.peak_bytes() / 2**20
        finally:
            started.close()
        self._comparison.add(engine.name, START, sample)
        # Whoever else works takes time from an engine, but no memory.
        self._comparison.add(engine.name, RSS, Sample(peak_mib, repeats=0, spoiled=False))


class _Started:
    """A process that is started over and over; CPU time counts those before it too."""

    def __init__(self, launch: Callable[[], Running], vocab_size: int) -> None:
        self._launch = launch
        self._vocab_size = vocab_size
        self._process: Running | None = None
        self._ended_s = 0.0

    def again(self, attempt: int) -> float:
        """Seconds from the start to the first token. Raises PeerError."""
        self.close()
        prompts = draw_from(self._vocab_size, f"start/{attempt}")(1, DECODE_PROMPT)
        begin_s = monotonic()
        self._process = self._launch()
        self._process.ask(prompts, 1)
        return monotonic() - begin_s

    def cpu_seconds(self) -> float:
        """Of all processes so far."""
        return self._ended_s + (self._process.cpu_seconds() if self._process else 0.0)

    def peak_bytes(self) -> int:
        """Of the last process."""
        return self._process.peak_bytes() if self._process else 0

    def close(self) -> None:
        """End the last process, if there is one."""
        if self._process is not None:
            self._ended_s += self._process.cpu_seconds()
            self._process.close()
            self._process = None


def _read(own_s: float) -> Reading:
    return Reading(monotonic(), busy_seconds(), own_s)


def _cores() -> int:
    return os.cpu_count() or 1
