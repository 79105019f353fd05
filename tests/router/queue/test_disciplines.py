"""What each discipline promises, whatever comes."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.settings import RouterSettings
from router.queue import DISCIPLINES, Discipline, Waiter
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


def compute(discipline: Discipline, waiter: Waiter) -> None:
    """It is under way, has its tokens and ends."""
    discipline.begin(waiter)
    discipline.serve(waiter, waiter.tokens)
    discipline.end(waiter)


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
            compute(discipline, taken)
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
    compute(discipline, Waiter("a", tokens=10_000.0))
    discipline.add(disliked)
    for number in range(1, 10_000):
        now = number * 1.0
        newcomer = Waiter(
            "b", priority=100, deadline=now + 1, tokens=50.0, came_at=now, number=number
        )
        discipline.add(newcomer)
        served = discipline.pop()
        compute(discipline, served)
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
            fair.serve(waiter, OUTPUT_WEIGHT * tokens)
            fair.end(waiter)
        waiter = fair.pop()
        fair.begin(waiter)
        fair.serve(waiter, waiter.tokens)
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
        compute(fair, served)
        had[served.tenant] += 1
    assert had["a"] == pytest.approx(200, abs=2)
    assert had["b"] == pytest.approx(400, abs=2)
    assert had["c"] == pytest.approx(100, abs=2)


def test_being_idle_earns_nothing() -> None:
    """Who comes back shares from then on, and does not catch up on what it did not ask for."""
    fair = Fair()
    for number in range(100):
        fair.add(Waiter("a", tokens=10.0, number=number))
        compute(fair, fair.pop())
    for number in range(100, 120):
        fair.add(Waiter("a", tokens=10.0, number=2 * number))
        fair.add(Waiter("b", tokens=10.0, number=2 * number + 1))
    order = []
    for _ in range(20):
        served = fair.pop()
        compute(fair, served)
        order.append(served.tenant)
    assert order.count("b") == pytest.approx(10, abs=1)


def test_nothing_is_kept_of_tenants_that_do_not_come_again() -> None:
    fair = Fair()
    for number in range(1000):
        fair.add(Waiter(f"t{number}", tokens=10.0, number=number))
        compute(fair, fair.pop())
    assert len(fair._counters) <= 2


def test_too_many_cost_the_tenant_that_has_most_waiting() -> None:
    fair = Fair()
    for number in range(10):
        fair.add(Waiter("flood", number=number))
    fair.add(Waiter("other", number=10))
    assert fair.last().number == 9


def under_way(fair: Fair, tenant: str, count: int) -> list[Waiter]:
    """So many requests of a tenant, which replicas have been given."""
    found = []
    for _ in range(count):
        fair.add(Waiter(tenant, WEIGHTS[tenant], tokens=10.0))
        found.append(fair.pop())
        fair.begin(found[-1])
        fair.serve(found[-1], 10.0)
    return found


@given(st.integers(1, 20), st.integers(0, 100), st.integers(1, 50))
def test_who_comes_back_comes_before_what_others_have_under_way_and_no_more(
    slots: int, output: int, prompt: int
) -> None:
    """Its credit is what was let through for the other, prompts and output, and is not done."""
    fair = Fair()
    fair.add(Waiter("b", tokens=1.0))
    compute(fair, fair.pop())
    for _ in range(100):
        fair.add(Waiter("a", tokens=10.0))
        compute(fair, fair.pop())
    flood = under_way(fair, "a", slots)
    for waiter in flood:
        fair.serve(waiter, OUTPUT_WEIGHT * output)
    credit = slots * (10.0 + OUTPUT_WEIGHT * output)
    fair.add(Waiter("a", tokens=10.0, number=1))
    first = 0
    while True:
        fair.add(Waiter("b", tokens=float(prompt), number=2 + first))
        served = fair.pop()
        if served.tenant == "a":
            break
        first += 1
        fair.begin(served)
        fair.serve(served, served.tokens)
    assert credit <= first * prompt < credit + prompt + 1e-6 or first * prompt == credit


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_who_has_more_than_twice_as_much_under_way_as_others_yields(
    own: int, second: int, third: int
) -> None:
    """By weight: a has 1, b has 2, c has 0.5. All have been here of late, idle ones too."""
    fair = Fair()
    for tenant, weight in WEIGHTS.items():
        fair.add(Waiter(tenant, weight))
        fair.discard(Waiter(tenant, weight))
        compute(fair, fair.pop())
    under_way(fair, "a", own)
    under_way(fair, "b", second)
    under_way(fair, "c", third)
    fair.add(Waiter("a"))
    mean = (second / 2 + third / 0.5) / 2
    assert fair.next_yields() == (own > 0 and own + 1 > 2 * mean)


@given(st.integers(0, 50))
def test_who_is_alone_never_yields(own: int) -> None:
    fair = Fair()
    fair.add(Waiter("b", came_at=0.0))
    compute(fair, fair.pop())
    fair.add(Waiter("a", came_at=100.0))
    under_way(fair, "a", own)
    assert not fair.next_yields()


def test_no_sum_outlives_the_requests_that_it_is_of() -> None:
    fair = Fair()
    for waiter in [*under_way(fair, "a", 7), *under_way(fair, "c", 3)]:
        fair.serve(waiter, 0.1)
        fair.end(waiter)
    assert not fair._running
    assert not fair._unfinished
