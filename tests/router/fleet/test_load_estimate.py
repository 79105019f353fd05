"""The estimate follows reports and bookings, and never forgets what is under way."""

from hypothesis import given
from hypothesis import strategies as st
from trunkline.internal.v1 import replica_pb2 as internal

from cluster.reservations import Reserved
from router.fleet.load_estimate import LoadEstimate
from router.fleet.prefill_rates import PrefillRates

BOOKINGS = st.lists(st.tuples(st.integers(1, 16), st.integers(0, 9000)), max_size=10)


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def estimate(clock: Clock | None = None) -> LoadEstimate:
    clock = clock or Clock()
    return LoadEstimate("replica-0@1", PrefillRates(clock), clock)


def report(running: int = 0, waiting: int = 0, **fields: float) -> internal.Load:
    return internal.Load(running_sequences=running, waiting_requests=waiting, **fields)  # type: ignore[arg-type]


@given(before=BOOKINGS, running=st.integers(0, 50), waiting=st.integers(0, 50), after=BOOKINGS)
def test_report_plus_what_was_sent_since(
    before: list[tuple[int, int]], running: int, waiting: int, after: list[tuple[int, int]]
) -> None:
    load = estimate()
    for booked in before:
        load.book(*booked)
    load.report(report(running, waiting))
    for booked in after:
        load.book(*booked)
    sent_after, own = sum(n for n, _ in after), sum(n for n, _ in before + after)
    assert load.load.pending_sequences == max(running + waiting + sent_after, own)


@given(bookings=BOOKINGS, running=st.integers(0, 200), queued=st.integers(0, 10_000))
def test_nothing_is_left_when_all_has_ended(
    bookings: list[tuple[int, int]], running: int, queued: int
) -> None:
    load = estimate()
    booked = [load.book(*booking) for booking in bookings]
    load.report(report(running, queued_prefill_tokens=queued))
    for index, booking in enumerate(booked):
        if index % 2:
            load.begin(booking)
        load.release(booking)
    load.report(report())
    assert (load.load.pending_sequences, load.load.queued_prefill_tokens) == (0, 0)
    assert load.unreported == Reserved()


def test_a_report_that_left_before_the_request_arrived_does_not_hide_it() -> None:
    load = estimate()
    load.book(4, 100)
    load.report(report())
    assert load.load.pending_sequences == 4
    assert load.load.queued_prefill_tokens == 100


def test_the_second_report_after_a_request_is_believed() -> None:
    load = estimate()
    load.book(1, 8000)
    load.report(report())
    load.report(report(running=1, queued_prefill_tokens=5000))
    assert load.load.queued_prefill_tokens == 5000


def test_a_prompt_counts_as_computed_once_its_first_token_has_come() -> None:
    load = estimate()
    load.report(report(queued_prefill_tokens=300))
    booking = load.book(1, 700)
    assert load.load.queued_prefill_tokens == 1000
    load.begin(booking)
    load.begin(booking)
    assert load.load.queued_prefill_tokens == 300


def test_what_is_unreported_is_what_was_sent_since_the_last_report_and_has_not_ended() -> None:
    load = estimate()
    load.book(1, 100)
    load.report(report())
    load.book(2, 200)
    ended = load.book(4, 400)
    assert load.unreported == Reserved(6, 600)
    load.release(ended)
    assert load.unreported == Reserved(2, 200)


def test_what_other_routers_have_sent_counts_beside_our_own() -> None:
    load = estimate()
    load.book(1, 100)
    load.share(Reserved(3, 300))
    assert (load.load.pending_sequences, load.load.queued_prefill_tokens) == (4, 400)
    assert load.unreported == Reserved(1, 100)


@given(queued=st.integers(0, 100_000), rate=st.floats(10.0, 1e6))
def test_the_queue_is_as_long_as_its_tokens_take(queued: int, rate: float) -> None:
    load = estimate()
    load.report(report(queued_prefill_tokens=queued, prefill_tokens_per_s=rate))
    assert abs(load.load.base_ms - 1e3 * queued / rate) < 1e-6 * (1 + load.load.base_ms)


@given(places=st.integers(1, 64), pending=st.integers(0, 200))
def test_waiting_for_a_place_begins_when_all_are_taken_and_grows_evenly(
    places: int, pending: int
) -> None:
    load = estimate()
    load.report(report(max_running_sequences=places, prefill_tokens_per_s=100.0))
    costs = []
    for _ in range(pending):
        load.book(1, 0)
        costs.append(load.load.base_ms)
    assert all(cost == 0.0 for cost in costs[: places - 1])
    steps = [
        after - before for before, after in zip(costs[places - 1 :], costs[places:], strict=False)
    ]
    assert all(abs(step - 1e3 / places) < 1e-6 for step in steps)


def test_a_place_is_waited_for_longer_where_sequences_run_longer() -> None:
    clock = Clock()
    loads = [estimate(clock), estimate(clock)]
    for load, run_s in zip(loads, (1.0, 30.0), strict=True):
        load.report(report(max_running_sequences=4, prefill_tokens_per_s=100.0))
        for _ in range(20):
            booking = load.book(1, 0)
            load.begin(booking)
            clock.now_s += run_s
            load.release(booking)
        load.book(8, 0)
    assert loads[1].load.base_ms > 10 * loads[0].load.base_ms


@given(sequences=st.integers(0, 100))
def test_each_running_decode_delays_a_first_answer_by_as_much(sequences: int) -> None:
    load = estimate()
    load.report(report(sequences, prefill_tokens_per_s=100.0, decode_tokens_per_s=1600.0))
    assert abs(load.load.decode_ms - 10.0 * sequences) < 1e-6


@given(most=st.integers(1, 300), running=st.integers(0, 300))
def test_a_few_may_wait_beside_those_that_run(most: int, running: int) -> None:
    load = estimate()
    assert load.room == load.room_to_run == float("inf")  # before the first report
    load.report(report(running, max_running_sequences=most))
    assert load.room == max(0, most + 1 + most // 8 - running)
    assert load.room_to_run == max(0, most - running)
