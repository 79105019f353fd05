"""Builds the CPU kernels: ``python -m workers.kernels.build [DIRECTORY]``.

Without a directory, the build for this machine goes into the user's cache, where `library` looks.
With one, builds for all instruction sets go there, as a wheel carries them.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workers.cache_dir import cache_dir
from workers.kernels.instruction_set import (
    INSTRUCTION_SETS,
    InstructionSet,
    cpu_flags,
    runnable,
)

SOURCES = Path(__file__).parent / "native"
_FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-Wall", "-Wextra"),
    # Only what is written as a fused multiply-add is one, so that rows round alike everywhere.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)


class BuildError(Exception):
    """The kernels cannot be compiled; the message tells what the compiler said."""


def builds_dir() -> Path:
    """Where builds for this machine are kept. Raises BuildError where there is no such place."""
    try:
        return cache_dir() / "kernels"
    except RuntimeError as error:
        raise BuildError(
            f"no place for the kernels, name one in XDG_CACHE_HOME: {error}"
        ) from error


def file_name(isa: InstructionSet) -> str:
    """Of the library; other sources or flags give another name."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(repr((_FLAGS, isa.compiler_flags)).encode())
    return f"{isa.name}-{digest.hexdigest()}.so"


def build(isa: InstructionSet, folder: Path) -> Path:
    """The library for `isa` in `folder`, compiled unless it is there already.

    Raises BuildError if there is no compiler or it fails.
    """
    target = folder / file_name(isa)
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # replicas that start together build once
        try:
            if not target.exists():
                _compile(target, (*_FLAGS, *isa.compiler_flags))
        finally:
            Path(lock.name).unlink(missing_ok=True)
    return target


def _compile(target: Path, flags: Iterable[str]) -> None:
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:

        def to_object(source: Path) -> str:
            output = f"{scratch}/{source.stem}.o"
            _run([compiler, *flags, "-c", str(source), "-o", output])
            return output

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            objects = list(threads.map(to_object, sorted(SOURCES.glob("*.cpp"))))
        library = f"{scratch}/library.so"
        _run([compiler, "-shared", "-pthread", *objects, "-o", library])
        Path(library).replace(target)


def _compiler() -> str:
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if found := shutil.which(name):
            return found
    raise BuildError("no C++ compiler: install g++ (Debian: g++), or name one in CXX")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}:\n{done.stderr}")


def main(arguments: Sequence[str]) -> int:
    """Build, and say where the libraries are or why they could not be made."""
    wanted = INSTRUCTION_SETS if arguments else runnable(cpu_flags())[:1]
    status = 0
    for isa in wanted:
        try:
            print(build(isa, Path(arguments[0]) if arguments else builds_dir()))
        except BuildError as error:
            print(f"kernels: {isa.name}: {error}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
