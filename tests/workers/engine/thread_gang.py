"""An engine whose other ranks are threads of the same process."""

import faulthandler
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import NamedTuple, TypeVar

from cluster.settings import EngineSettings
from tests.workers.parallel.thread_group import run_ranks
from workers.engine.cache_size import CacheSize, cache_dtype, cache_size
from workers.engine.engine import Engine
from workers.engine.rank_runner import RankRunner
from workers.engine.redis_part import Errand, Outcome, RedisPart, redis_part
from workers.engine.served_model import served_model
from workers.engine.step_plan import Ints, StepPlan
from workers.layers.kv_cache import KVCache
from workers.parallel.group import Ranks
from workers.parallel.layout import ParallelLayout

T = TypeVar("T")
_WAIT_S = 60.0


class _Mailbox(NamedTuple):
    """Between the leader and one other rank."""

    offered: "Queue[CacheSize]"
    agreed: "Queue[CacheSize]"
    plans: "Queue[Ints | None]"
    part: "Queue[RedisPart | None]"


class _ThreadGang:
    """See Gang."""

    def __init__(self, ranks: Ranks, others: list[_Mailbox]) -> None:
        self.ranks = ranks
        self._others = others
        self._lock = Lock()
        self._parts: list[RedisPart] = []

    def agree(self, own: CacheSize) -> CacheSize:
        offered = [other.offered.get(timeout=_WAIT_S) for other in self._others]
        least = CacheSize.least([own, *offered])
        for other in self._others:
            other.agreed.put(least)
        return least

    def send(self, plan: StepPlan) -> None:
        for other in self._others:
            other.plans.put(plan.buffer.copy())

    def run(self, errand: Errand, own: RedisPart) -> Outcome:
        with self._lock:
            if not self._parts:
                parts = [other.part.get(timeout=_WAIT_S) for other in self._others]
                self._parts = [part for part in parts if part is not None]
        return Outcome.of_all([part.run(errand) for part in (own, *self._parts)])

    def check(self) -> None:
        self.ranks.check()

    def fail(self, reason: str) -> None:
        self.close()

    def dump_stacks(self) -> None:
        faulthandler.dump_traceback()

    def close(self) -> None:
        for other in self._others:
            other.plans.put(None)


def with_ranks(folder: Path, settings: EngineSettings, body: Callable[[Engine], T]) -> T:
    """What `body` returns for an engine of as many ranks as the settings say, without their gang.

    Raises what the first rank to fail has raised.
    """
    layout = ParallelLayout(**settings.parallel.model_dump())
    others = [_Mailbox(Queue(), Queue(), Queue(), Queue()) for _ in range(layout.world_size - 1)]

    def lead(ranks: Ranks) -> T:
        gang = _ThreadGang(ranks, others)
        try:
            return body(Engine(folder, settings, gang=gang))
        finally:
            gang.close()

    def follow(ranks: Ranks, mailbox: _Mailbox) -> None:
        model = served_model(folder, settings, None, ranks)
        mailbox.offered.put(cache_size(model, settings, model.config.max_sequence_len))
        agreed = mailbox.agreed.get(timeout=_WAIT_S)
        runner = RankRunner(
            model,
            KVCache.allocate(
                model.shape,
                agreed.num_blocks,
                settings.block_size,
                cache_dtype(model, settings),
                model.device,
            ),
            ranks,
            block_size=settings.block_size,
            max_num_tokens=settings.max_num_batched_tokens,
            num_slots=agreed.num_slots,
        )
        mailbox.part.put(redis_part(model, settings, ranks, runner.host))
        while (plan := mailbox.plans.get(timeout=_WAIT_S)) is not None:
            runner.follow(StepPlan.read(plan))

    answers = run_ranks(
        layout,
        lambda ranks: (
            lead(ranks) if ranks.place.rank == 0 else follow(ranks, others[ranks.place.rank - 1])
        ),
    )
    answer = answers[0]
    assert answer is not None
    return answer
