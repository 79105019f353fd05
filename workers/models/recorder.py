"""A model's forward pass, played back without Python."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workers.kernels.library import Library, Program

_ALLOCATIONS = frozenset({torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default})


class Recorder:
    """Runs a function of fixed memory, and from the second time on plays what it did.

    Only where the function is nothing but calls of the library's kernels; where torch computes
    something too, it is run each time. One program is kept for each key.
    """

    def __init__(self, library: Library | None) -> None:
        self._library = library
        self._programs: dict[int, Program | None] = {}
        self._last: int | None = None

    def run(self, key: int, function: Callable[[], object]) -> None:
        """Do what `function` does, which must be the same for the same key."""
        self._last = key
        if self._library is None:
            function()
        elif key not in self._programs:
            self._programs[key] = _record(self._library, function)
        elif (program := self._programs[key]) is not None:
            program.play()
        else:
            function()

    def seconds(self) -> list[tuple[str, float]]:
        """The kernels of what ran last, in order, and how long each takes; none if not recorded.

        It is run again, on the same memory.
        """
        program = None if self._last is None else self._programs.get(self._last)
        return [] if program is None else program.seconds()


def _record(library: Library, function: Callable[[], object]) -> Program | None:
    with library.recording() as program, _TorchWatch() as watch:
        function()
    return None if watch.has_computed else program


class _TorchWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices whether torch itself computes anything."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.has_computed = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: what would tell the compiler to skip us imports it first, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func not in _ALLOCATIONS:
            self.has_computed = True
        return func(*args, **(kwargs or {}))
