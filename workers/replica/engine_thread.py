"""The engine on a thread of its own: neither its steps nor the event loop wait for each other."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import monotonic

import structlog

from cluster.errors import RequestError
from cluster.model_card import ModelCard
from cluster.prefix.events import CacheEvent
from workers.engine.load import Load
from workers.engine.request import Request, SampleOutput
from workers.replica.step_engine import StepEngine

log = structlog.get_logger(__name__)

_STOP_TIMEOUT_S = 10.0
_IDLE_CHECK_S = 1.0
"""Idle seconds after which the engine's books are checked; not at once, where it would delay the
next request of a client that sends one after the other."""
_REST_S = 0.1
"""Between looks of an idle engine after what it has begun."""


class EngineDied(Exception):  # noqa: N818 - it is a state as much as an error
    """The engine can compute no more; its requests are lost."""


class EngineHangs(EngineDied):
    """The engine does not come back from a step."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that the engine did not take."""

    request_id: str
    error: RequestError


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one turn of the engine has to say."""

    outputs: list[SampleOutput] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    cache_events: list[CacheEvent] = field(default_factory=list)


class EngineThread:
    """Owns an engine: makes it, steps it while it has work, sleeps while it has none.

    All methods are called on the event loop.
    """

    def __init__(
        self, make_engine: Callable[[], StepEngine], on_step: Callable[[float], None]
    ) -> None:
        """`on_step` gets each step's seconds, on the engine's thread."""
        self._make_engine = make_engine
        self._on_step = on_step
        self._wake = threading.Condition()
        self._arrivals: list[Request] = []
        self._cancels: list[str] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._engine: StepEngine | None = None
        self._load: Load | None = None
        self._step_began: float | None = None
        self._error: BaseException | None = None

    @property
    def engine(self) -> StepEngine:
        """For reading its counters."""
        assert self._engine is not None, "start() comes first"
        return self._engine

    @property
    def load(self) -> Load:
        """How busy the engine was after its last turn, and what it has been handed since."""
        assert self._load is not None, "start() comes first"
        arrivals = self._arrivals
        return replace(
            self._load,
            waiting_requests=self._load.waiting_requests + len(arrivals),
            queued_prefill_tokens=self._load.queued_prefill_tokens
            + sum(len(request.prompt_token_ids) for request in arrivals),
        )

    async def start(
        self, *, on_report: Callable[[StepReport], None], on_death: Callable[[], None]
    ) -> None:
        """Make the engine; returns when it is ready. Raises what making it raised.

        From then on the event loop calls `on_report` once per turn that has something to say,
        and `on_death` once, should a step raise: that is fatal.
        """
        self._on_report, self._on_death = on_report, on_death
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._ready

    def card(self, name: str) -> ModelCard:
        """The engine's model card."""
        return self.engine.card(name)

    def submit(self, request: Request) -> None:
        """Hand a request to the engine. Raises EngineDied."""
        if self._error is not None or self._stopping:
            raise EngineDied("the engine has stopped")
        with self._wake:
            self._arrivals.append(request)
            self._wake.notify()

    def cancel(self, request_id: str) -> None:
        """Have the engine forget a request; unknown ids are fine."""
        with self._wake:
            self._cancels.append(request_id)
            self._wake.notify()

    def check(self, max_step_s: float) -> None:
        """Raise EngineDied if the engine has failed, EngineHangs if its step takes longer than
        `max_step_s`."""
        if self._error is not None:
            raise EngineDied(f"the engine failed: {self._error!r}") from self._error
        try:
            self.engine.check()
        except Exception as error:
            raise EngineDied(f"the engine failed: {error}") from error
        began = self._step_began
        if began is not None and monotonic() - began > max_step_s:
            raise EngineHangs(f"a step has been running for {monotonic() - began:.0f} s")

    def dump_stacks(self) -> None:
        """Write to the logs what all threads of the engine's processes are doing."""
        self.engine.dump_stacks()

    async def stop(self) -> None:
        """End the thread after its current step; what is unfinished is dropped.

        A step that hangs is not waited for: the thread ends with the process.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT_S)

    def _main(self) -> None:
        try:
            self._engine = self._make_engine()
            self._engine.listen_to_cache()
            self._load = self._engine.load()
        except BaseException as error:
            self._call(_fail, self._ready, error)
            return
        self._call(_succeed, self._ready)
        try:
            self._run(self._engine)
        except BaseException as error:
            log.exception("the engine failed")
            self._error = error
            self._call(self._on_death)
        self._engine.close()

    def _run(self, engine: StepEngine) -> None:
        while True:
            arrivals, cancels = self._next_commands(engine)
            if self._stopping:
                return
            # Arrivals first: a request that was cancelled on its heels is then known.
            refusals = [r for r in (_add(engine, request) for request in arrivals) if r]
            for request_id in cancels:
                engine.cancel(request_id)
            # Before the step too, or what was just handed over would count nowhere while it runs.
            self._load = engine.load()
            outputs = self._step(engine) if engine.has_work else []
            self._load = engine.load()
            cache_events = engine.take_cache_events()
            if outputs or refusals or cache_events:
                self._call(self._on_report, StepReport(outputs, refusals, cache_events))

    def _next_commands(self, engine: StepEngine) -> tuple[list[Request], list[str]]:
        """What has come in; while the engine has no work, wait for it."""
        if not engine.has_work and not self._wait(_IDLE_CHECK_S):
            engine.check_integrity()
            while engine.rest() and not self._wait(_REST_S):
                pass
            self._wait(None)
        with self._wake:
            commands = self._arrivals, self._cancels
            self._arrivals, self._cancels = [], []
        return commands

    def _wait(self, timeout_s: float | None) -> bool:
        """Sleep until there are commands; returns whether there are."""
        with self._wake:
            return self._wake.wait_for(
                lambda: bool(self._arrivals or self._cancels or self._stopping), timeout_s
            )

    def _step(self, engine: StepEngine) -> list[SampleOutput]:
        self._step_began = began = monotonic()
        outputs = engine.step()
        self._step_began = None
        self._on_step(monotonic() - began)
        return outputs

    def _call(self, function: Callable[..., None], *args: object) -> None:
        """Run `function` on the event loop, unless that is gone with the process."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *args)


def _add(engine: StepEngine, request: Request) -> Refusal | None:
    try:
        engine.add(request)
    except RequestError as error:
        return Refusal(request.request_id, error)
    return None


def _succeed(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _fail(ready: asyncio.Future[None], error: BaseException) -> None:
    if not ready.done():
        ready.set_exception(error)
