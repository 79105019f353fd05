"""The leader's side of a gang: it starts the other ranks, leads them, and notices their loss."""

import faulthandler
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path

import structlog

from cluster.settings import EngineSettings
from workers.engine.cache_size import CacheSize
from workers.engine.control import HEARTBEAT_S, ChannelLost, ChannelSilent
from workers.engine.control_hello import new_token
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
from workers.engine.cpus import usable_cpus
from workers.engine.gang_members import Door, Member
from workers.engine.launcher import Launcher
from workers.engine.plan_ring import PlanRing
from workers.engine.rank_connection import connect_rank, open_store
from workers.engine.rank_settings import settings_of_a_rank
from workers.engine.redis_part import Errand, Outcome, RedisPart
from workers.engine.step_plan import StepPlan
from workers.kernels.cpu_collectives import Futex
from workers.kernels.library import load_library
from workers.parallel.connect import Connection
from workers.parallel.group import RankLostError, Ranks
from workers.parallel.layout import ParallelLayout
from workers.parallel.segment import Segment

log = structlog.get_logger(__name__)

COME_S = 120.0
"""For ranks to start, which takes the longer the busier their machine is."""
SLOW_S = 600.0
"""For a rank that is heard of to take its next plan."""
_STDERR = 2
_LEAVE_S = 5.0
"""For ranks that have been told to stop."""


class ProcessGang:
    """A Gang whose other ranks are processes. `check` and `dump_stacks` may be called anywhere.

    A rank is lost when its connection ends, or it is silent. Then the gang is dead: whatever its
    ranks exchange fails at once, those that are left leave, and `check` raises.
    """

    def __init__(
        self,
        model_dir: Path,
        settings: EngineSettings,
        launcher: Launcher,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Start the ranks and connect them; they load their shares while the leader loads its own.

        Args:
            model_dir: By which all ranks find the model.
            settings: Of the replica.
            launcher: Has not launched anything yet.
            progress: Told (layers loaded, layers in all) of all ranks together, on any thread.

        Raises:
            TimeoutError: Ranks did not come.
            RankNotStarted: A rank ended before it came.
            RankLostError: A rank was lost after that.
            OSError: Sockets or shared memory cannot be had.
        """
        self._launcher = launcher
        self._progress = progress
        self._own_progress = (0, 0)
        self._news = threading.Condition()
        self._lost: RankLostError | None = None
        self._closing = False
        self._members: list[Member] = []
        self._errand_numbers = count()
        self._ring: PlanRing | None = None
        self._by_channel: list[Member] = []
        self._connection: Connection | None = None
        self._opened = ExitStack()
        self._opened.callback(launcher.kill)
        try:
            self._start(model_dir, settings)
        except BaseException:
            self.close()
            raise

    @property
    def ranks(self) -> Ranks:
        """See Gang."""
        assert self._connection is not None, "made with it"
        return self._connection.ranks

    def note_progress(self, done: int, total: int) -> None:
        """Tell of the leader's own loading. Raises RankLostError, for which it is to end."""
        self._own_progress = (done, total)
        self._show_progress()
        self.check()

    def agree(self, own: CacheSize) -> CacheSize:
        """See Gang."""
        with self._news:
            self._news.wait_for(
                lambda: self._lost or all(m.room is not None for m in self._members)
            )
        self.check()
        room = CacheSize.least([own, *(m.room for m in self._members if m.room is not None)])
        for member in self._members:
            self._tell(member, Start(num_blocks=room.num_blocks, num_slots=room.num_slots))
        self.check()
        return room

    def send(self, plan: StepPlan) -> None:
        """See Gang."""
        for member in self._by_channel:
            try:
                member.channel.send_plan(plan.buffer)
            except ChannelLost as lost:
                self._lose(member, lost)
        if self._ring is not None:
            try:
                self._ring.write(plan.buffer, SLOW_S)
            except RankLostError as error:
                self._die(error)
        self.check()

    def run(self, errand: Errand, own: RedisPart) -> Outcome:
        """See Gang."""
        number = next(self._errand_numbers)
        hashes = [block_hash.hex() for block_hash in errand.hashes]
        message = RunErrand(
            number=number, what=errand.what, hashes=hashes, slots=list(errand.slots)
        )
        members = list(self._members)
        for member in members:
            self._tell(member, message)
        outcomes = [own.run(errand)]
        with self._news:
            self._news.wait_for(
                lambda: self._lost or self._closing or all(number in m.outcomes for m in members)
            )
        self.check()
        if self._closing:
            raise RankLostError("the gang is being closed")
        return Outcome.of_all([*outcomes, *(member.outcomes.pop(number) for member in members)])

    def fail(self, reason: str) -> None:
        """See Gang."""
        self._die(RankLostError(reason))

    def check(self) -> None:
        """See Gang. Notices failed exchanges too."""
        if self._lost is None and self._connection is not None:
            try:
                self._connection.ranks.check()
            except RankLostError as error:
                # Whose connection has ended knows better whose fault it is.
                with self._news:
                    self._news.wait_for(lambda: self._lost, HEARTBEAT_S)
                self._die(error, is_hung=True)
        if self._lost is not None:
            raise RankLostError(str(self._lost))

    def dump_stacks(self) -> None:
        """Have all ranks, this one too, write to their logs what their threads are doing."""
        for member in self._members:
            if not member.has_left:
                with suppress(ChannelLost):
                    member.channel.send(Dump())
        # By its number: sys.stderr may be something that is no file.
        faulthandler.dump_traceback(file=_STDERR)

    def close(self) -> None:
        """See Gang. Again is fine."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        for member in self._members:
            with suppress(ChannelLost):
                member.channel.send(Stop())
        with self._news:
            self._news.wait_for(lambda: all(m.has_left for m in self._members), _LEAVE_S)
        self._opened.close()
        self._members, self._ring = [], None

    def _start(self, model_dir: Path, settings: EngineSettings) -> None:
        self._gather(ParallelLayout(**settings.parallel.model_dump()).world_size)
        node = self._launcher.node
        nodes = [node, *(member.hello.node for member in self._members)]
        self.settings = settings_of_a_rank(settings, usable_cpus(), nodes.count(node))
        """The leader's own."""
        # Others may still be reading there when the leader is done.
        self._store = open_store(node)
        shared = self._share_plans(nodes)
        for member in self._members:
            hello, rank = member.hello, member.hello.rank
            neighbours = nodes.count(hello.node)
            setup = Setup(
                model_dir=str(model_dir),
                settings=settings_of_a_rank(settings, hello.num_cpus, neighbours),
                nodes=nodes,
                store=f"{node}:{self._store.port}",
                device=nodes[:rank].count(hello.node),
                plans=shared.get(rank),
            )
            self._tell(member, setup)
        try:
            connection = connect_rank(
                self.settings, nodes, rank=0, device=0, store=self._store, check=self.check
            )
        except RankLostError as error:
            raise self._lost or error from error
        self._connection = self._opened.enter_context(connection)

    def _gather(self, world_size: int) -> None:
        """Launch all ranks but this one, and let them in."""
        load_library()  # is built here at most, and not by several ranks while others wait
        token = new_token()
        door = Door(self._launcher.node, token, world_size, self._welcome)
        try:
            for rank in range(1, world_size):
                self._launcher.launch(rank, door.address, token)
            door.wait(COME_S, self._check_launched)
        finally:
            door.close()
        self._members.sort(key=lambda member: member.hello.rank)

    def _check_launched(self) -> None:
        self._launcher.check()
        self.check()

    def _welcome(self, member: Member) -> None:
        self._members.append(member)
        member.channel.start(partial(self._hear, member), None, partial(self._lose, member))
        self._opened.callback(member.channel.close)

    def _share_plans(self, nodes: list[str]) -> dict[int, SharedPlans]:
        """The ring for ranks of this machine, which has to have the kernels; the others' plans go
        by their channels."""
        library = load_library()
        near = [m for m in self._members if m.hello.node == nodes[0] and library is not None]
        self._by_channel = [member for member in self._members if member not in near]
        if library is None or not near:
            return {}
        segment = Segment.create(PlanRing.segment_bytes(len(near)))
        self._ring = PlanRing(Futex(library), segment, len(near))
        self._opened.callback(self._ring.close)
        return {
            member.hello.rank: SharedPlans(path=segment.path, num_readers=len(near), reader=reader)
            for reader, member in enumerate(near)
        }

    def _tell(self, member: Member, message: Message) -> None:
        try:
            member.channel.send(message)
        except ChannelLost as lost:
            self._lose(member, lost)

    def _hear(self, member: Member, message: AnyMessage) -> None:
        """On the thread that reads a rank's channel."""
        if isinstance(message, Progress):
            member.progress = (message.done, message.total)
            self._show_progress()
        elif isinstance(message, Loaded):
            with self._news:
                member.room = CacheSize(message.num_blocks, message.num_slots)
                self._news.notify_all()
        elif isinstance(message, ErrandDone):
            fields = message.model_dump(exclude={"kind", "number"})
            with self._news:
                member.outcomes[message.number] = Outcome(**fields)
                self._news.notify_all()
        elif isinstance(message, Failed):
            self._die(RankLostError(f"{member} failed: {message.error}"))
        else:
            self._lose(member, ChannelLost(f"it said {message.kind}"))

    def _show_progress(self) -> None:
        if self._progress is not None:
            each = [self._own_progress, *(member.progress for member in self._members)]
            self._progress(sum(done for done, _ in each), sum(total for _, total in each))

    def _lose(self, member: Member, why: ChannelLost) -> None:
        """A rank's connection has ended, as it should if the rank was told to stop."""
        with self._news:
            member.has_left = True
            self._news.notify_all()
        self._die(RankLostError(f"{member} is lost: {why}"), is_hung=isinstance(why, ChannelSilent))

    def _die(self, error: RankLostError, *, is_hung: bool = False) -> None:
        """The first reason counts. All that wait for a rank, here and elsewhere, are released.

        If any `is_hung`, what ranks are doing goes to their logs before.
        """
        with self._news:
            if self._lost is not None or self._closing:
                return
            self._lost = error
            self._news.notify_all()
        log.error("the gang is dead", reason=str(error))
        if is_hung:
            self.dump_stacks()
        if self._connection is not None:
            self._connection.abort()
        if self._ring is not None:
            self._ring.end()
        for member in self._members:
            member.channel.hang_up()
