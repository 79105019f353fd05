"""A request that waits for its turn."""

import asyncio
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Waiter:
    """What disciplines know of a request."""

    tenant: str
    weight: float = 1.0
    """Of the tenant."""
    priority: int = 0
    deadline: float = float("inf")
    """On time.monotonic()."""
    tokens: float = 0.0
    """What its prompt counts, by the weights of router.queue.fair."""
    sequences: int = 1
    came_at: float = 0.0
    """On time.monotonic()."""
    number: int = 0
    """Grows with each that comes."""
    yields: bool = False
    """Whether it makes way for others at a replica; known when its turn has come."""
    served: float = 0.0
    """Tokens computed for it, by the weights of router.queue.fair."""
    turn: asyncio.Future[None] | None = field(default=None, repr=False)
    """Done when its turn has come; fails if that will not be."""
