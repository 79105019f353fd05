"""What each discipline promises, whatever comes."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings import RouterSettings
from router.queue import DISCIPLINES, Waiter
from router.queue.fair import OUTPUT_WEIGHT, PROMPT_WEIGHT, Fair

NAMES = sorted(DISCIPLINES)
MOST_PROMPT, MOST_OUTPUT = 50, 40


def test_the_settings_know_them_all() -> None:
    assert sorted(get_args(RouterSettings.model_fields["queue"].annotation)) == NAMES


class Spec(NamedTuple):
    """A request, in small numbers."""

    tenant: str
    priority: int
    deadline: float
    prompt: int
    output: int
    gap_s: float


SPECS = st.lists(
    st.builds(
        Spec,
        st.sampled_from("abc"),
        st.integers(-3, 3),
        st.floats(0, 100),
        st.integers(1, MOST_PROMPT),
        st.integers(1, MOST_OUTPUT),
        st.floats(0, 10),
    ),
    max_size=30,
)
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}


def waiters(specs: Sequence[Spec]) -> list[Waiter]:
    """In the order and at the times at which they come."""
    made: list[Waiter] = []
    now = 0.0
    for number, spec in enumerate(specs):
        now += spec.gap_s
        made.append(
            Waiter(
                tenant=spec.tenant,
                weight=WEIGHTS[spec.tenant],
                priority=spec.priority,
                deadline=now + spec.deadline,
                tokens=PROMPT_WEIGHT * spec.prompt,
                came_at=now,
                number=number,
            )
        )
    return made


@pytest.mark.parametrize("name", NAMES)
@given(SPECS, st.data())
def test_it_holds_what_was_added_and_neither_taken_nor_discarded(
    name: str, specs: list[Spec], data: st.DataObject
) -> None:
    discipline = DISCIPLINES[name]()
    inside: list[Waiter] = []
    for waiter in waiters(specs):
        discipline.add(waiter)
        inside.append(waiter)
        assert discipline.last() in inside
        action = data.draw(st.sampled_from(["keep", "pop", "discard", "discard twice"]))
        if action == "pop":
            taken = discipline.pop()
            discipline.serve(taken.tenant, taken.weight, taken.tokens)
            inside.remove(taken)
        elif action != "keep":
            gone = data.draw(st.sampled_from(inside))
            discipline.discard(gone)
            if action == "discard twice":
                discipline.discard(gone)
            inside.remove(gone)
        assert len(discipline) == len(inside)
    left = [discipline.pop() for _ in range(len(discipline))]
    assert sorted(waiter.number for waiter in left) == sorted(w.number for w in inside)


@pytest.mark.parametrize("name", ["fcfs", "priority", "deadline"])
@given(SPECS)
def test_where_places_are_fixed_the_number_before_is_exact(name: str, specs: list[Spec]) -> None:
    discipline = DISCIPLINES[name]()
    inside = waiters(specs)
    for waiter in inside:
        discipline.add(waiter)
    before = {waiter.number: discipline.num_before(waiter) for waiter in inside}
    order = [discipline.pop().number for _ in inside]
    assert [before[number] for number in order] == list(range(len(order)))


@given(SPECS)
def test_priority_goes_before_all_that_came_within_five_seconds_a_step(specs: list[Spec]) -> None:
    discipline = DISCIPLINES["priority"]()
    for waiter in waiters(specs):
        discipline.add(waiter)
    order = [discipline.pop() for _ in range(len(discipline))]
    for place, earlier in enumerate(order):
        for later in order[place + 1 :]:
            if later.priority > earlier.priority:
                head_start_s = later.came_at - earlier.came_at
                assert head_start_s >= 5 * (later.priority - earlier.priority) - 1e-6


@given(SPECS)
def test_the_earliest_deadline_goes_first_and_who_came_first_under_fcfs(specs: list[Spec]) -> None:
    for name, key in (("deadline", "deadline"), ("fcfs", "number")):
        discipline = DISCIPLINES[name]()
        for waiter in waiters(specs):
            discipline.add(waiter)
        order = [getattr(discipline.pop(), key) for _ in range(len(discipline))]
        assert order == sorted(order)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_starves_however_many_favoured_ones_keep_coming(name: str) -> None:
    """One that is disliked in every way, and one favoured newcomer for each that is served."""
    discipline = DISCIPLINES[name]()
    disliked = Waiter("a", priority=-100, deadline=3600.0, tokens=50.0, number=0)
    discipline.serve("a", 1.0, 10_000.0)
    discipline.add(disliked)
    for number in range(1, 10_000):
        now = number * 1.0
        newcomer = Waiter(
            "b", priority=100, deadline=now + 1, tokens=50.0, came_at=now, number=number
        )
        discipline.add(newcomer)
        served = discipline.pop()
        discipline.serve(served.tenant, served.weight, served.tokens)
        if served is disliked:
            return
    pytest.fail("it was never served")


class Run(NamedTuple):
    """A request at a replica."""

    waiter: Waiter
    output: int


@given(
    st.lists(
        st.tuples(st.integers(1, MOST_PROMPT), st.integers(1, MOST_OUTPUT), st.integers(0, 5)),
        min_size=1,
        max_size=200,
    ),
    st.integers(1, 4),
)
def test_backlogged_tenants_differ_by_one_prompt_and_what_is_under_way(
    requests: list[tuple[int, int, int]], slots: int
) -> None:
    """The bound of the paper, by weight: |c_a - c_b| <= prompt + slots * output, at all times."""
    fair = Fair()
    number = 0

    def refill() -> None:
        nonlocal number
        for tenant, weight in WEIGHTS.items():
            prompt = requests[number % len(requests)][0]
            fair.add(Waiter(tenant, weight, tokens=PROMPT_WEIGHT * prompt, number=number))
            number += 1

    for _ in range(slots + 2):
        refill()
    running: list[Run] = []
    for _, output, ended in requests:
        if len(running) == slots:
            waiter, tokens = running.pop(ended % slots)
            fair.serve(waiter.tenant, waiter.weight, OUTPUT_WEIGHT * tokens)
        waiter = fair.pop()
        fair.serve(waiter.tenant, waiter.weight, waiter.tokens)
        running.append(Run(waiter, output))
        refill()
        for one, one_weight in WEIGHTS.items():
            for other in WEIGHTS:
                most = PROMPT_WEIGHT * MOST_PROMPT + OUTPUT_WEIGHT * slots * MOST_OUTPUT
                assert fair.counter(one) - fair.counter(other) <= most / one_weight


def test_shares_follow_weights() -> None:
    fair = Fair()
    had = dict.fromkeys(WEIGHTS, 0)
    number = 0
    for _ in range(700):
        for tenant, weight in WEIGHTS.items():
            fair.add(Waiter(tenant, weight, tokens=10.0, number=number))
            number += 1
        served = fair.pop()
        fair.serve(served.tenant, served.weight, served.tokens)
        had[served.tenant] += 1
    assert had["a"] == pytest.approx(200, abs=2)
    assert had["b"] == pytest.approx(400, abs=2)
    assert had["c"] == pytest.approx(100, abs=2)


def test_being_idle_earns_nothing() -> None:
    """Who comes back shares from then on, and does not catch up on what it did not ask for."""
    fair = Fair()
    for number in range(100):
        fair.add(Waiter("a", tokens=10.0, number=number))
        fair.serve("a", 1.0, fair.pop().tokens)
    for number in range(100, 120):
        fair.add(Waiter("a", tokens=10.0, number=2 * number))
        fair.add(Waiter("b", tokens=10.0, number=2 * number + 1))
    order = []
    for _ in range(20):
        served = fair.pop()
        fair.serve(served.tenant, 1.0, served.tokens)
        order.append(served.tenant)
    assert order.count("b") == pytest.approx(10, abs=1)


def test_nothing_is_kept_of_tenants_that_do_not_come_again() -> None:
    fair = Fair()
    for number in range(1000):
        fair.add(Waiter(f"t{number}", tokens=10.0, number=number))
        fair.serve(f"t{number}", 1.0, fair.pop().tokens)
    assert len(fair._counters) <= 2


def test_too_many_cost_the_tenant_that_has_most_waiting() -> None:
    fair = Fair()
    for number in range(10):
        fair.add(Waiter("flood", number=number))
    fair.add(Waiter("other", number=10))
    assert fair.last().number == 9
