"""How the ranks of a gang get their processes."""

from typing import Protocol


class RankNotStarted(Exception):  # noqa: N818 - a state more than an error
    """A rank ended before it could join its gang."""


class Launcher(Protocol):
    """Starts the ranks of one gang, and ends them."""

    @property
    def node(self) -> str:
        """Address of the leader's machine, by which the ranks' machines reach it."""

    def launch(self, rank: int, address: str, token: str) -> None:
        """Have a process call `run_rank` with these, without waiting for it."""

    def check(self) -> None:
        """Raise RankNotStarted if a launched rank has ended."""

    def kill(self) -> None:
        """End what is left of the ranks; returns when they are gone. Again is fine."""
