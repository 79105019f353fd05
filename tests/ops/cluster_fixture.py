"""`trunkline serve` as a process, for tests of the command."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRUNKLINE = [sys.executable, "-c", "from ops.cli import main; main()"]


@contextmanager
def short_directory() -> Iterator[Path]:
    """Not pytest's: the names of Ray's sockets in it would be too long."""
    with tempfile.TemporaryDirectory(prefix="tl-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def environment(run_directory: Path) -> dict[str, str]:
    """Where commands put their files and look for the cluster of this test, and for no other."""
    return os.environ | {"XDG_RUNTIME_DIR": str(run_directory), "TMPDIR": str(run_directory)}


def trunkline(
    *arguments: str, run_directory: Path, stdin: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run(
        [*TRUNKLINE, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(run_directory),
    )


@contextmanager
def serving(run_directory: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A cluster that is ready, and the block it has printed."""
    process = subprocess.Popen(
        [*TRUNKLINE, "serve", *arguments, "--grpc-port", "0", "--http-port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(run_directory),
    )
    try:
        yield process, _ready_block(process)
    finally:
        process.terminate()
        process.wait()


def _ready_block(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            return "".join(lines)
    raise AssertionError(f"trunkline serve ended: {''.join(lines)}")


def status(run_directory: Path) -> list[dict[str, object]]:
    """What `trunkline status --json` says."""
    found: list[dict[str, object]] = json.loads(
        trunkline("status", "--json", run_directory=run_directory).stdout
    )
    return found
