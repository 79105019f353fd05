"""A replica that fails requests gets none for a while, then one, then all again or none."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.fleet.breaker import Breaker

COOLDOWN_S = 5.0


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock, max_failures: int = 1) -> Breaker:
    breaker = Breaker(max_failures, COOLDOWN_S, clock)
    for _ in range(max_failures):
        breaker.fail()
    return breaker


@given(max_failures=st.integers(1, 6), outcomes=st.lists(st.booleans(), max_size=30))
def test_it_opens_after_so_many_failures_in_a_row(max_failures: int, outcomes: list[bool]) -> None:
    breaker, in_a_row = Breaker(max_failures, COOLDOWN_S, Clock()), 0
    for is_success in outcomes:
        if is_success:
            breaker.succeed()
            in_a_row = 0
        else:
            in_a_row += 1
            assert breaker.fail() == (in_a_row == max_failures)
        assert breaker.lets_through == (in_a_row < max_failures)


def test_after_the_cooldown_one_request_tries() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += COOLDOWN_S - 0.1
    assert breaker.state.name == "OPEN"
    assert not breaker.lets_through
    clock.now_s += 0.1
    assert breaker.state.name == "HALF_OPEN"
    assert breaker.lets_through
    assert breaker.send()
    assert not breaker.lets_through
    breaker.succeed()
    assert breaker.state.name == "CLOSED"
    assert not breaker.send()


def test_a_probe_that_fails_opens_it_anew_however_many_failures_it_takes_otherwise() -> None:
    clock = Clock()
    breaker = opened(clock, max_failures=3)
    clock.now_s += COOLDOWN_S
    breaker.send()
    assert breaker.fail()
    assert breaker.state.name == "OPEN"
    clock.now_s += COOLDOWN_S
    assert breaker.state.name == "HALF_OPEN"


def test_a_probe_that_tells_nothing_makes_way_for_another() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += COOLDOWN_S
    breaker.send()
    breaker.end_probe()
    assert breaker.lets_through


class Any(RuleBasedStateMachine):
    """Whatever happens, a breaker that stays untouched lets a request through in the end."""

    @initialize(max_failures=st.integers(1, 3))
    def begin(self, max_failures: int) -> None:
        self.clock = Clock()
        self.breaker = Breaker(max_failures, COOLDOWN_S, self.clock)
        self.is_probing = False

    @rule(seconds=st.floats(0, 2 * COOLDOWN_S))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @precondition(lambda self: self.breaker.lets_through)
    @rule()
    def send(self) -> None:
        self.is_probing = self.breaker.send() or self.is_probing

    @rule(is_success=st.booleans())
    def hear(self, is_success: bool) -> None:
        if is_success:
            self.breaker.succeed()
        else:
            self.breaker.fail()

    @rule()
    def end_probe(self) -> None:
        if self.is_probing:
            self.breaker.end_probe()
            self.is_probing = False

    @invariant()
    def ends(self) -> None:
        now_s = self.clock.now_s
        self.clock.now_s += COOLDOWN_S
        assert self.breaker.lets_through or self.is_probing
        self.clock.now_s = now_s


TestAny = Any.TestCase
