"""How requests wait for a replica with room."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from router.queue.discipline import Discipline
from router.queue.fair import Fair
from router.queue.ordered import Ordered, by_deadline, by_priority, first_come
from router.queue.request_queue import RequestQueue, Turn
from router.queue.waiter import Waiter

DISCIPLINES: Final[Mapping[str, Callable[[], Discipline]]] = MappingProxyType(
    {
        "fcfs": lambda: Ordered(first_come),
        "priority": lambda: Ordered(by_priority),
        "deadline": lambda: Ordered(by_deadline),
        "fair": Fair,
    }
)
"""Makers of disciplines by the name they have in the settings."""

__all__ = ["DISCIPLINES", "Discipline", "RequestQueue", "Turn", "Waiter"]
