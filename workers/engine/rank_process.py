"""What every rank but the leader does: join the gang, load its share, follow plans.

`python -m workers.engine.rank_process ADDRESS RANK NODE`, with the gang's token on standard input,
is such a rank; see SubprocessLauncher.
"""

import faulthandler
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import NoReturn, TypeVar

import structlog

from cluster.logs import configure_logs
from cluster.settings import LogSettings
from workers.engine.cache_size import cache_dtype, cache_size
from workers.engine.control import HEARTBEAT_S, SILENCE_S, Channel, ChannelLost
from workers.engine.control_hello import connect_to_leader
from workers.engine.control_messages import (
    AnyMessage,
    Dump,
    ErrandDone,
    Failed,
    Loaded,
    Message,
    Progress,
    RunErrand,
    Setup,
    SharedPlans,
    Start,
    Stop,
)
from workers.engine.plan_ring import PlanRing
from workers.engine.rank_connection import connect_rank, join_store
from workers.engine.rank_errands import RankErrands
from workers.engine.rank_runner import RankRunner
from workers.engine.redis_part import redis_part
from workers.engine.served_model import served_model
from workers.engine.step_plan import Ints, StepPlan
from workers.kernels.cpu_collectives import Futex
from workers.kernels.library import load_library
from workers.layers.kv_cache import KVCache
from workers.parallel.group import RankLostError, Ranks
from workers.parallel.segment import Segment

log = structlog.get_logger(__name__)

_EXIT_FAILED = 1
_STDERR = 2
_MAX_ERROR_CHARS = 2000

Expected = TypeVar("Expected", bound=Message)


def run_rank(address: str, token: str, rank: int, node: str) -> NoReturn:
    """Have this process be a rank, as long as it lives; the leader is another one.

    It ends when the leader says so, and whenever something goes wrong, the leader's silence among
    that: at once, as what computes here may be waiting for ranks that are no more.

    Args:
        address: host:port where the leader lets its ranks in.
        token: The gang's secret.
        rank: Which one, from 1.
        node: Address of this machine. Ranks with the same one share memory.
    """
    load_library()  # what has to be built for it takes longer than others wait later on
    try:
        channel = connect_to_leader(address, token, rank, node)
    except (ChannelLost, OSError) as error:
        log.error("the leader does not let this rank in", rank=rank, error=str(error))
        os._exit(_EXIT_FAILED)
    try:
        _Rank(channel, rank).run()
    except RankLostError as error:
        # The leader is about to know more; then it ends this process.
        log.warning("the exchange with other ranks has failed", rank=rank, reason=str(error))
        time.sleep(HEARTBEAT_S)
        _tell_failure(channel, error)
    except BaseException as error:
        log.exception("the rank has failed", rank=rank)
        _tell_failure(channel, error)
    # The leader hangs up when it has heard, and with that ends this process.
    time.sleep(SILENCE_S)
    os._exit(_EXIT_FAILED)


def _tell_failure(channel: Channel, error: BaseException) -> None:
    text = " ".join(str(error).split())
    with suppress(ChannelLost):
        channel.send(Failed(error=f"{type(error).__name__}: {text}"[:_MAX_ERROR_CHARS]))


class _Rank:
    """A rank that has been let in."""

    def __init__(self, channel: Channel, rank: int) -> None:
        self._channel = channel
        self._rank = rank
        self._messages: SimpleQueue[Message] = SimpleQueue()
        self._plans: SimpleQueue[Ints | None] = SimpleQueue()
        self._errands = RankErrands(self._tell_outcome)
        channel.start(self._hear, self._plans.put, self._leave)

    def run(self) -> None:
        """From the leader's first word on, until the gang is dead. Raises whatever went wrong."""
        setup = self._next(Setup)
        store = join_store(setup.store)
        with connect_rank(setup.settings, setup.nodes, self._rank, setup.device, store) as others:
            runner = self._load(setup, others.ranks)
            if setup.plans is not None:
                ring = _open_ring(setup.plans)
                Thread(target=self._take_plans, args=(ring,), name="plans", daemon=True).start()
            while (plan := self._plans.get()) is not None:
                runner.follow(StepPlan.read(plan))
        raise RankLostError("the leader has given up the gang")

    def _take_plans(self, ring: PlanRing) -> None:
        """Take plans as they come: the leader may have to hand over a later one before it can do
        its part of the one that is followed."""
        while (plan := ring.read()) is not None:
            self._plans.put(plan)
        self._plans.put(None)

    def _load(self, setup: Setup, ranks: Ranks) -> RankRunner:
        """This rank's share of the model, and as much of a cache as all ranks have room for."""
        settings = setup.settings
        model = served_model(Path(setup.model_dir), settings, self._tell_progress, ranks)
        longest = model.config.max_sequence_len
        room = cache_size(model, settings, min(settings.max_model_len or longest, longest))
        self._channel.send(Loaded(num_blocks=room.num_blocks, num_slots=room.num_slots))
        start = self._next(Start)
        dtype = cache_dtype(model, settings)
        cache = KVCache.allocate(
            model.shape, start.num_blocks, settings.block_size, dtype, model.device
        )
        runner = RankRunner(
            model,
            cache,
            ranks,
            block_size=settings.block_size,
            max_num_tokens=settings.max_num_batched_tokens,
            num_slots=start.num_slots,
        )
        part = redis_part(model, settings, ranks, runner.host)
        if part is not None:
            self._errands.start(part)
        return runner

    def _tell_outcome(self, done: ErrandDone) -> None:
        with suppress(ChannelLost):  # the thread that reads there ends this process
            self._channel.send(done)

    def _tell_progress(self, done: int, total: int) -> None:
        self._channel.send(Progress(done=done, total=total))

    def _next(self, kind: type[Expected]) -> Expected:
        message = self._messages.get()
        if not isinstance(message, kind):
            raise ChannelLost(f"the leader said {message!r:.100}, not {kind.__name__}")
        return message

    def _hear(self, message: AnyMessage) -> None:
        """On the thread that reads the channel."""
        if isinstance(message, Dump):
            faulthandler.dump_traceback(file=_STDERR)
        elif isinstance(message, Stop):
            os._exit(0)
        elif isinstance(message, RunErrand):
            self._errands.take(message)
        else:
            self._messages.put(message)

    def _leave(self, why: ChannelLost) -> None:
        log.warning("the leader is gone", rank=self._rank, reason=str(why))
        os._exit(_EXIT_FAILED)


def _open_ring(shared: SharedPlans) -> PlanRing:
    library = load_library()
    if library is None:
        raise RuntimeError("this rank has no CPU kernels, which the leader on its machine has")
    segment = Segment.open(shared.path, PlanRing.segment_bytes(shared.num_readers))
    return PlanRing(Futex(library), segment, shared.num_readers, shared.reader)


def main() -> None:
    """Be the rank that the command line says."""
    address, rank, node = sys.argv[1:]
    configure_logs(LogSettings(level="warning"), process="rank", rank=rank)
    run_rank(address, sys.stdin.read(), int(rank), node)


if __name__ == "__main__":
    main()
