"""The CPU kernels as a loaded library."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter

import structlog
import torch

from workers.kernels.build import SOURCES, BuildError, build, builds_dir, file_name
from workers.kernels.instruction_set import InstructionSet, cpu_flags, runnable

_PREFIX = "trunkline_"
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}


def dtype_code(dtype: torch.dtype) -> int:
    """The number of an element type in kernel arguments. KeyError if kernels do not know it."""
    return _DTYPES[dtype]


_Number = ctypes.c_int32 | ctypes.c_uint32 | ctypes.c_int64 | ctypes.c_void_p


class _Call(ctypes.Structure):
    _fields_ = (("kernel", ctypes.c_void_p), ("args", ctypes.c_void_p))


class Program:
    """Recorded kernel calls, which play on the same memory as when they were recorded."""

    def __init__(self, library: "Library") -> None:
        self._library = library
        self._names: list[str] = []
        self._calls: list[_Call] = []
        self._alive: list[object] = []

    def add(
        self, function: "ctypes._NamedFuncPointer", args: ctypes.Structure, *alive: object
    ) -> None:
        """Append a call; what its arguments point to is kept."""
        address = ctypes.cast(function, ctypes.c_void_p).value
        self._names.append(function.__name__.removeprefix(_PREFIX))
        self._calls.append(_Call(address, ctypes.addressof(args)))
        self._alive += (args, alive)

    def seal(self) -> None:
        """End the recording."""
        self._array = (_Call * len(self._calls))(*self._calls)

    def play(self) -> None:
        """Run all calls in order, without Python between them."""
        self._library.play(self._array)

    def seconds(self) -> list[tuple[str, float]]:
        """Run all calls in order, one at a time: each kernel's name and how long it took."""
        taken = []
        for name, call in zip(self._names, self._calls, strict=True):
            alone = (_Call * 1)(call)
            start = perf_counter()
            self._library.play(alone)
            taken.append((name, perf_counter() - start))
        return taken


class Library:
    """The kernels built for one instruction set.

    A kernel takes one ctypes.Structure that mirrors the struct of its C++ source. The GIL is not
    held while it runs. All of a process's kernels share one pool of threads.
    """

    def __init__(self, path: Path, isa: str) -> None:
        self.isa = isa
        self._handle = ctypes.CDLL(str(path))
        self._play = self._handle.trunkline_play
        self._play.argtypes = (ctypes.c_void_p, ctypes.c_int64)
        self._play.restype = None
        self._recording = threading.local()

    def set_num_threads(self, count: int, *, shared_with_torch: bool = False) -> None:
        """Compute on `count` threads, the caller's included; 1 until told.

        They are torch's own if `shared_with_torch`: where both compute in turn, each one's threads
        would else wait, spinning, on cores that the other's need.
        """
        self._handle.trunkline_set_threads(ctypes.c_int(count), ctypes.c_int(shared_with_torch))

    def kernel(self, name: str, args: type[ctypes.Structure]) -> "Kernel":
        """A kernel by name. TypeError if `args` is not the size of the struct that it takes."""
        size_of = self._handle[f"{_PREFIX}{name}_size"]
        size_of.restype = ctypes.c_int64
        if size_of() != ctypes.sizeof(args):
            raise TypeError(f"{args.__name__}: {ctypes.sizeof(args)} bytes, expected {size_of()}")
        return Kernel(self, self._handle[f"{_PREFIX}{name}"])

    def function(
        self, name: str, result: type[_Number] | None, *arguments: type[_Number]
    ) -> "ctypes._NamedFuncPointer":
        """A function of plain numbers that is not a kernel: it is never recorded."""
        function = self._handle[f"{_PREFIX}{name}"]
        function.restype, function.argtypes = result, arguments
        return function

    @contextmanager
    def recording(self) -> Iterator[Program]:
        """Keep, beside running them, the calls that this thread makes within."""
        self._recording.program = program = Program(self)
        try:
            yield program
        finally:
            self._recording.program = None
        program.seal()

    def call(
        self, function: "ctypes._NamedFuncPointer", args: ctypes.Structure, *alive: object
    ) -> None:
        """Run a kernel, and note the call if a recording is on."""
        function(ctypes.byref(args))
        program: Program | None = getattr(self._recording, "program", None)
        if program is not None:
            program.add(function, args, *alive)

    def play(self, calls: "ctypes.Array[_Call]") -> None:
        """Run calls in order."""
        self._play(ctypes.addressof(calls), len(calls))


class Kernel:
    """One function of a library."""

    def __init__(self, library: Library, function: "ctypes._NamedFuncPointer") -> None:
        self._library = library
        self._function = function
        function.restype = None

    def __call__(self, args: ctypes.Structure, *alive: object) -> None:
        """Run it; `alive` owns the memory that the arguments point to."""
        self._library.call(self._function, args, *alive)


def load_library() -> Library | None:
    """The kernels for this machine, built at need; None where they cannot be had.

    Looked for among the package's own files, then in the user's cache.
    """
    return _machine_library()


@cache
def _machine_library() -> Library | None:
    isas = runnable(cpu_flags())
    log = structlog.get_logger()
    if not isas:
        log.warning("kernels.unavailable", reason="needs AVX2 and FMA", instead="torch")
        return None
    for isa, instead in zip(isas, [*(isa.name for isa in isas[1:]), "torch"], strict=True):
        try:
            return Library(_path(isa), isa.name)
        except (BuildError, OSError) as error:
            log.warning("kernels.unavailable", build=isa.name, reason=str(error), instead=instead)
    return None


def _path(isa: InstructionSet) -> Path:
    carried = SOURCES / "lib" / file_name(isa)
    return carried if carried.exists() else build(isa, builds_dir())
