"""A named choice between implementations of one interface."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownChoiceError(ValueError):
    """A name that no implementation answers to."""


class Registry(Generic[T]):
    """Implementations by name, fixed when the registry is made."""

    def __init__(self, noun: str, choices: Mapping[str, T]) -> None:
        self._noun = noun
        self._choices = MappingProxyType(dict(choices))

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._choices)

    def get(self, name: str) -> T:
        """The implementation called `name`; raises UnknownChoiceError listing the known names."""
        if name not in self._choices:
            known = ", ".join(self.names)
            raise UnknownChoiceError(f"unknown {self._noun} {name!r}; known: {known}")
        return self._choices[name]
