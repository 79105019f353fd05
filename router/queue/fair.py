"""Fair shares among tenants: the virtual token counter of Sheng et al., OSDI 2024."""

from collections import deque

from router.queue.waiter import Waiter

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a token counts; that of the paper, where output is dearer than prompt."""
_LATELY_S = 60.0
"""A tenant is expected again for so long after a request."""
_FAR_MORE = 2.0
"""Times what others have under way on average."""
_NOTHING = 1e-6
"""Of a sum by weight, what is left by rounding."""


class Fair:
    """Serves the tenant that has been served least, for its weight; each one's requests in order.

    A tenant that comes back is lifted to the least of those that wait, or to the one that was let
    through last if none does, less what is under way for it: being idle earns no more than to come
    before what was let through but not finished meanwhile. Between two tenants that have requests
    waiting all the time, served tokens (by weight) differ by no more than one prompt and what was
    under way, with its output.

    Replicas are full of requests of whoever asks most. So a tenant that has far more under way
    than the others yields: they find a place, and their prompts do not wait for its prompts.
    """

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        """Tokens for the tenant's weight; those that are the base are not kept."""
        self._waiting: dict[str, deque[Waiter]] = {}
        self._len = 0
        self._base = 0.0
        """No tenant that waits has had less."""
        self._last = ""
        """The tenant let through last."""
        self._unfinished: dict[str, float] = {}
        """What each counter counts of requests that are under way."""
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
            self._raise_base()
            self._counters[tenant] = max(self.counter(tenant), self._base)
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
        tenant = self._last = self._next()
        self._raise_base()
        waiter = self._waiting[tenant].popleft()
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

    def next_yields(self) -> bool:
        """Whether its tenant has something under way, and with it far more, for its weight, than
        the others that were here of late, on average."""
        waiter = self._waiting[self._next()][0]
        own = self._running.get(waiter.tenant, 0.0)
        others = (self._running.keys() | self._came.keys()) - {waiter.tenant}
        if not own or not others:
            return False
        total = sum(self._running.values()) - own
        return own + waiter.sequences / waiter.weight > _FAR_MORE * total / len(others)

    def begin(self, waiter: Waiter) -> None:
        """It is under way."""
        _add(self._running, waiter.tenant, waiter.sequences / waiter.weight)

    def end(self, waiter: Waiter) -> None:
        """It is not under way any more."""
        _add(self._running, waiter.tenant, -waiter.sequences / waiter.weight)
        _add(self._unfinished, waiter.tenant, -waiter.served / waiter.weight)

    def serve(self, waiter: Waiter, tokens: float) -> None:
        """Tokens were computed for it; it is under way."""
        waiter.served += tokens
        tenant, had = waiter.tenant, tokens / waiter.weight
        self._counters[tenant] = self.counter(tenant) + had
        _add(self._unfinished, tenant, had)

    def _next(self) -> str:
        """Served least; of several, the one with least under way, then the one that came first."""

        def place(tenant: str) -> tuple[float, float, int]:
            return self.counter(tenant), self._running.get(tenant, 0.0), self._first(tenant)

        return min(self._waiting, key=place)

    def _raise_base(self) -> None:
        """To what those that wait have had by requests that have ended, as far as they differ."""
        present = self._waiting or (self._last,)
        finished = (self.counter(name) - self._unfinished.get(name, 0.0) for name in present)
        self._base = max(self._base, min(finished))

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


def _add(sums: dict[str, float], tenant: str, amount: float) -> None:
    """Add to a sum that is kept as long as it is something."""
    sums[tenant] = sums.get(tenant, 0.0) + amount
    if sums[tenant] < _NOTHING:
        del sums[tenant]
