"""Requests wait while no replica has room, and none is forgotten."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import Reason, RequestError
from router.queue import DISCIPLINES, RequestQueue, Waiter
from router.queue.places import Places
from tests.router.test_gate import Clock


class Replicas:
    """A model's replicas, whose room a test sets."""

    def __init__(self, room: float, num_ready: int = 1, num_waiting: int = 0) -> None:
        """`num_waiting` of the room are not to run at once."""
        self.num_ready = num_ready
        self.room = room
        self._num_waiting = num_waiting
        self._changed = asyncio.Event()

    @property
    def room_to_run(self) -> float:
        return max(0, self.room - self._num_waiting)

    async def changed(self) -> None:
        await self._changed.wait()

    def change(self, room: float, num_ready: int = 1) -> None:
        """As when a replica tells its load."""
        self.room, self.num_ready = room, num_ready
        self._changed.set()
        self._changed = asyncio.Event()


def make(
    replicas: Replicas,
    name: str = "fair",
    *,
    max_queued: int = 100,
    places: int = 1000,
    max_waiting_s: float = 30.0,
    clock: Callable[[], float] | None = None,
) -> RequestQueue:
    times = {} if clock is None else {"clock": clock}
    return RequestQueue(
        DISCIPLINES[name](),
        replicas,
        Places(places),
        max_queued=max_queued,
        max_waiting_s=max_waiting_s,
        on_wait=lambda seconds: None,
        **times,
    )


class Request:
    """One that goes through a queue, and stays at a replica until told to end."""

    def __init__(self, queue: RequestQueue, replicas: Replicas, waiter: Waiter) -> None:
        self.is_through = False
        self.may_end = asyncio.Event()
        self.waiter = waiter
        self._queue = queue
        self._replicas = replicas
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._queue.turn(self.waiter) as turn:
            self.is_through = True
            self._replicas.room -= self.waiter.sequences
            turn.sent()
            try:
                await self.may_end.wait()
                turn.serve(5)
            finally:
                self._replicas.room += self.waiter.sequences


async def settle() -> None:
    """Let all tasks come as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def reason_of(task: "asyncio.Task[None]") -> RequestError:
    with pytest.raises(RequestError) as caught:
        await task
    return caught.value


def start(queue: RequestQueue, replicas: Replicas, *tenants: str) -> list[Request]:
    return [Request(queue, replicas, Waiter(tenant, tokens=10.0)) for tenant in tenants]


async def test_with_room_nobody_waits() -> None:
    replicas = Replicas(room=float("inf"))
    queue = make(replicas)
    requests = start(queue, replicas, *"abcd")
    await settle()
    assert all(request.is_through for request in requests)
    for request in requests:
        request.may_end.set()
        await request.task


async def test_an_end_lets_the_next_one_through() -> None:
    replicas = Replicas(room=2)
    queue = make(replicas, "fcfs")
    requests = start(queue, replicas, *"aaaa")
    for number in range(4):
        await settle()
        through = [request.is_through for request in requests]
        assert through == [place < number + 2 for place in range(4)]
        requests[number].may_end.set()
        await requests[number].task
    assert replicas.room == 2


async def test_more_are_not_let_through_than_there_is_room_before_any_has_arrived() -> None:
    """Those on their way to a replica are in no load yet."""
    replicas = Replicas(room=3)
    queue = make(replicas)
    inside = 0

    async def run() -> None:
        nonlocal inside
        async with queue.turn(Waiter("a")):
            inside += 1
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(run()) for _ in range(10)]
    await settle()
    assert inside == 3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_no_replica_is_sent_more_than_the_routers_own_bound() -> None:
    replicas = Replicas(room=float("inf"))
    requests = start(make(replicas, places=2), replicas, *"aaa")
    await settle()
    assert [request.is_through for request in requests] == [True, True, False]
    for request in requests:
        request.may_end.set()
        await request.task


async def test_a_flood_does_not_push_others_behind_it() -> None:
    """Ten times as many requests of one tenant, all there first; the other's go in between."""
    replicas = Replicas(room=2)
    queue = make(replicas, max_queued=1000)
    flood = start(queue, replicas, *["flood"] * 100)
    await settle()
    others = start(queue, replicas, *["other"] * 10)
    await settle()
    for _ in range(22):
        running = [r for r in (*flood, *others) if r.is_through and not r.task.done()]
        running[0].may_end.set()
        await running[0].task
        await settle()
    assert all(request.is_through for request in others)
    assert sum(request.is_through for request in flood) <= 16
    for request in (*flood, *others):
        request.may_end.set()
    await asyncio.gather(*(request.task for request in (*flood, *others)))


@pytest.mark.parametrize(("name", "num_through"), [("fair", 4), ("fcfs", 6)])
async def test_who_has_far_more_under_way_does_not_wait_at_replicas_and_is_marked(
    name: str, num_through: int
) -> None:
    """Where there are others: the first requests are alone, and take all."""
    replicas = Replicas(room=6, num_waiting=2)
    queue = make(replicas, name)
    alone = start(queue, replicas, *"aaaaaaa")
    await settle()
    assert sum(request.is_through for request in alone) == 6
    assert not any(request.waiter.yields for request in alone)
    for request in alone:
        request.may_end.set()
    [other] = start(queue, replicas, "b")
    other.may_end.set()
    await asyncio.gather(other.task, *(request.task for request in alone))

    flood = start(queue, replicas, *"aaaaaaa")
    await settle()
    assert sum(request.is_through for request in flood) == num_through
    [other] = start(queue, replicas, "b")
    await settle()
    assert other.is_through == (name == "fair")
    assert not other.waiter.yields
    marked = [request.waiter.yields for request in flood if request.is_through]
    assert marked == [name == "fair" and number > 0 for number in range(num_through)]
    for request in [*flood, other]:
        request.may_end.set()
    await asyncio.gather(other.task, *(request.task for request in flood))
    assert replicas.room == 6


async def test_when_too_many_wait_the_flood_pays() -> None:
    replicas = Replicas(room=0)
    queue = make(replicas, max_queued=5)
    flood = start(queue, replicas, *["flood"] * 5)
    await settle()
    (other,) = start(queue, replicas, "other")
    error = await reason_of(flood[-1].task)
    assert error.reason is Reason.QUEUE_FULL
    assert error.retry_after_s
    assert not other.task.done()
    assert (await reason_of(start(queue, replicas, "flood")[0].task)).reason is Reason.QUEUE_FULL
    queue.close()
    for request in (*flood[:-1], other):
        assert (await reason_of(request.task)).reason is Reason.SHUTTING_DOWN
    assert (await reason_of(start(queue, replicas, "a")[0].task)).reason is Reason.SHUTTING_DOWN


async def test_a_deadline_ends_the_wait() -> None:
    replicas = Replicas(room=0)
    clock = Clock()
    queue = make(replicas, clock=clock)
    request = Request(queue, replicas, Waiter("a", deadline=clock.now + 0.01))
    await settle()
    clock.now += 0.01
    assert (await reason_of(request.task)).reason is Reason.DEADLINE_EXCEEDED
    assert len(queue) == 0


async def test_what_would_wait_past_its_deadline_is_refused_at_once() -> None:
    """By the pace of late, one end each 2 s, the fifth in line waits about 10 s."""
    replicas = Replicas(room=1)
    clock = Clock()
    queue = make(replicas, "fcfs", clock=clock)
    busy = start(queue, replicas, *"a" * 30)
    for request in busy[:25]:
        await settle()
        clock.now += 2
        request.may_end.set()
        await request.task
    await settle()
    late = Request(queue, replicas, Waiter("a", deadline=clock.now + 9))
    error = await reason_of(late.task)
    assert error.reason is Reason.QUEUE_FULL
    assert error.retry_after_s == pytest.approx(2.0, rel=0.1)
    in_time = Request(queue, replicas, Waiter("a", deadline=clock.now + 12))
    await settle()
    assert not in_time.task.done()
    queue.close()


async def test_the_pace_of_requests_that_had_the_replicas_to_themselves_refuses_nobody() -> None:
    replicas = Replicas(room=1)
    clock = Clock()
    queue = make(replicas, clock=clock)
    for _ in range(30):
        (request,) = start(queue, replicas, "a")
        await settle()
        clock.now += 60
        request.may_end.set()
        await request.task
    start(queue, replicas, "a")
    hurried = Request(queue, replicas, Waiter("a", deadline=clock.now + 1))
    await settle()
    assert not hurried.task.done()
    queue.close()


async def test_without_any_replica_the_wait_is_bounded() -> None:
    replicas = Replicas(room=0, num_ready=0)
    queue = make(replicas, max_waiting_s=0.01)
    (request,) = start(queue, replicas, "a")
    assert (await reason_of(request.task)).reason is Reason.NO_REPLICA
    (request,) = start(queue, replicas, "a")
    await settle()
    replicas.change(room=1)
    await settle()
    assert request.is_through
    request.may_end.set()
    await request.task


async def play(name: str, script: list[tuple[str, int]]) -> None:
    """Requests come, end, are cancelled and replicas change, in any order."""
    replicas = Replicas(room=2)
    queue = make(replicas, name, max_queued=1000)
    requests: list[Request] = []
    for action, number in script:
        alive = [request for request in requests if not request.task.done()]
        if action == "come":
            requests += start(queue, replicas, "abc"[number % 3])
        elif action == "room":
            replicas.change(replicas.room + number % 3)
        elif alive and action == "end":
            alive[number % len(alive)].may_end.set()
        elif alive and action == "cancel":
            alive[number % len(alive)].task.cancel()
        if number % 2:
            await settle()
    await settle()
    assert not (len(queue) and replicas.room > 0), "there is room, and somebody waits"
    assert len(queue) == sum(not r.is_through and not r.task.done() for r in requests)
    for request in requests:
        request.may_end.set()
    await asyncio.gather(*(request.task for request in requests), return_exceptions=True)
    assert all(request.is_through or request.task.cancelled() for request in requests)
    assert len(queue) == 0
    assert queue._on_their_way == 0
    assert queue._num_running == 0
    assert queue._places.is_free


@pytest.mark.parametrize("name", sorted(DISCIPLINES))
@settings(max_examples=60, deadline=None)
@given(
    script=st.lists(
        st.tuples(st.sampled_from(["come", "come", "end", "cancel", "room"]), st.integers(0, 99)),
        max_size=40,
    )
)
def test_no_wake_up_is_lost_and_cancelled_ones_leave_nothing(
    name: str, script: list[tuple[str, int]]
) -> None:
    asyncio.run(play(name, script))
