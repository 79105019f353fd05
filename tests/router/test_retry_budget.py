"""Retries stay a share of requests in the long run, and may come all at once in the short."""

from hypothesis import given
from hypothesis import strategies as st

from router.retry_budget import RetryBudget


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def spend_all(budget: RetryBudget) -> int:
    number = 0
    while budget.spend():
        number += 1
    return number


@given(
    share=st.floats(0, 1),
    burst=st.integers(1, 50),
    requests=st.integers(0, 500),
    seconds=st.floats(0, 3),
)
def test_retries_are_bounded_by_burst_share_and_time(
    share: float, burst: int, requests: int, seconds: float
) -> None:
    clock = Clock()
    budget = RetryBudget(share, burst, clock)
    assert spend_all(budget) == burst
    for _ in range(requests):
        budget.earn()
    clock.now_s += seconds
    earned = min(burst, share * requests + 10.0 * seconds)
    assert earned - 1.001 <= spend_all(budget) <= earned + 0.001
    assert not budget.spend()


def test_a_router_without_traffic_can_try_again_soon() -> None:
    clock = Clock()
    budget = RetryBudget(0.0, 5, clock)
    spend_all(budget)
    clock.now_s += 0.11
    assert budget.spend()
