"""Fair shares among tenants: the virtual token counter of Sheng et al., OSDI 2024."""

from collections import deque

from router.queue.waiter import Waiter

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a token counts; that of the paper, where output is dearer than prompt."""
_LATELY_S = 60.0
"""A tenant is expected again for so long after a request."""
_NOTHING = 1e-6
"""Of a sum of sequences by weight, what is left by rounding."""


class Fair:
    """Serves the tenant that has been served least, for its weight; each one's requests in order.

    Nobody is sent away from a replica for another, and it answers in the order of coming. So who
    has more under way than another that was here of late may not fill it: the other would have to
    wait until something ends.

    A tenant that comes back is lifted to the least of those that wait, or to the one that was let
    through last if none does: being idle earns nothing. Between two tenants that have requests
    waiting all the time, served tokens (by weight) differ by no more than one prompt and the
    output of what is under way.
    """

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        """Tokens for the tenant's weight; those that are the base are not kept."""
        self._waiting: dict[str, deque[Waiter]] = {}
        self._len = 0
        self._base = 0.0
        """The counter that the tenant let through last had before; none that waits has less."""
        self._last = ""
        """That tenant."""
        self._running: dict[str, float] = {}
        """Sequences under way, for the tenant's weight."""
        self._came: dict[str, float] = {}
        """When the newest request of each tenant came, of late; oldest first."""

    def __len__(self) -> int:
        return self._len

    def counter(self, tenant: str) -> float:
        """What a tenant has had, for its weight."""
        return self._counters.get(tenant, self._base)

    def add(self, waiter: Waiter) -> None:
        """One more waits."""
        tenant = waiter.tenant
        if tenant not in self._waiting:
            floor = min(map(self.counter, self._waiting or (self._last,)))
            self._counters[tenant] = max(self.counter(tenant), floor)
            self._waiting[tenant] = deque()
        self._waiting[tenant].append(waiter)
        self._len += 1
        self._note(waiter)

    def discard(self, waiter: Waiter) -> None:
        """It waits no more; harmless if it did not wait."""
        line = self._waiting.get(waiter.tenant, deque())
        if waiter in line:
            line.remove(waiter)
            self._leave(waiter.tenant)

    def pop(self) -> Waiter:
        """The next one, which then waits no more. Some must wait."""
        tenant = self._next()
        waiter = self._waiting[tenant].popleft()
        self._last, self._base = tenant, self.counter(tenant)
        self._leave(tenant)
        self._forget()
        return waiter

    def last(self) -> Waiter:
        """The newest of the tenant that has most waiting, for its weight. Some must wait."""
        lines = self._waiting.values()
        line = max(lines, key=lambda line: (len(line) / line[-1].weight, line[-1].number))
        return line[-1]

    def num_before(self, waiter: Waiter) -> int:
        """How many of those that wait now will come before it, if nobody else comes.

        An estimate that takes all requests for equally large.
        """
        own = self._waiting.get(waiter.tenant, ())
        before = next((i for i, other in enumerate(own) if other is waiter), len(own))
        others = 0
        for tenant, line in self._waiting.items():
            if tenant != waiter.tenant:
                turns = (before + 1) * line[0].weight / waiter.weight
                others += min(len(line), round(turns))
        return before + others

    def next_may_fill(self) -> bool:
        """Whether no tenant that was here of late has less under way, for its weight."""
        running = self._running.get(self._next(), 0.0)
        return all(self._running.get(other, 0.0) >= running for other in self._came)

    def begin(self, waiter: Waiter) -> None:
        """It is under way."""
        running = self._running.get(waiter.tenant, 0.0)
        self._running[waiter.tenant] = running + waiter.sequences / waiter.weight

    def end(self, waiter: Waiter) -> None:
        """It is not under way any more."""
        self._running[waiter.tenant] -= waiter.sequences / waiter.weight
        if self._running[waiter.tenant] < _NOTHING:
            del self._running[waiter.tenant]

    def serve(self, tenant: str, weight: float, tokens: float) -> None:
        """Tokens were computed for a tenant of this weight."""
        self._counters[tenant] = self.counter(tenant) + tokens / weight

    def _next(self) -> str:
        """Served least; of several, the one with least under way, then the one that came first."""

        def place(tenant: str) -> tuple[float, float, int]:
            return self.counter(tenant), self._running.get(tenant, 0.0), self._first(tenant)

        return min(self._waiting, key=place)

    def _note(self, waiter: Waiter) -> None:
        """Remember that its tenant is here, and forget who was not of late."""
        self._came.pop(waiter.tenant, None)
        self._came[waiter.tenant] = waiter.came_at
        while (oldest := next(iter(self._came))) != waiter.tenant:
            if self._came[oldest] >= waiter.came_at - _LATELY_S:
                break
            del self._came[oldest]

    def _leave(self, tenant: str) -> None:
        self._len -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]

    def _forget(self) -> None:
        """Drop the counters that say nothing: whoever comes back is lifted to the base."""
        below = [name for name, counter in self._counters.items() if counter <= self._base]
        for tenant in below:
            if tenant not in self._waiting:
                del self._counters[tenant]

    def _first(self, tenant: str) -> int:
        return self._waiting[tenant][0].number
