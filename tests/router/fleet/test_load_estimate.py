"""The estimate follows reports and own bookings, and never forgets what is under way."""

from hypothesis import given
from hypothesis import strategies as st
from trunkline.internal.v1 import replica_pb2 as internal

from router.fleet.load_estimate import LoadEstimate

BOOKINGS = st.lists(st.integers(1, 16), max_size=10)


def report(running: int, waiting: int = 0) -> internal.Load:
    return internal.Load(running_sequences=running, waiting_requests=waiting)


@given(before=BOOKINGS, running=st.integers(0, 50), waiting=st.integers(0, 50), after=BOOKINGS)
def test_report_plus_what_was_sent_since(
    before: list[int], running: int, waiting: int, after: list[int]
) -> None:
    load = LoadEstimate()
    for sequences in before:
        load.add(sequences)
    load.report(report(running, waiting))
    for sequences in after:
        load.add(sequences)
    own = sum(before) + sum(after)
    assert load.pending_sequences == max(running + waiting + sum(after), own)


@given(sequences=BOOKINGS, running=st.integers(0, 200))
def test_nothing_is_left_when_all_has_ended(sequences: list[int], running: int) -> None:
    load = LoadEstimate()
    for booked in sequences:
        load.add(booked)
    load.report(report(running))
    for booked in sequences:
        load.remove(booked)
    load.report(report(0))
    assert load.pending_sequences == 0


def test_a_report_that_left_before_the_request_arrived_does_not_hide_it() -> None:
    load = LoadEstimate()
    load.add(4)
    load.report(report(0))
    assert load.pending_sequences == 4
