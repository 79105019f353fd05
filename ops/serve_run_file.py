"""Where a cluster on this machine tells other commands how to find it."""

import os
import tempfile
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError


class RunFile(BaseModel):
    """A running cluster."""

    model_config = ConfigDict(frozen=True)

    pid: int
    """Process of `trunkline serve`."""
    started_at: float
    """Start of that process in seconds since 1970, so that a recycled pid is not taken for it."""
    grpc_address: str
    http_address: str
    redis_url: str
    namespace: str
    num_rollouts: int = 0
    """Rolling updates that have ended."""
    rollout_failure: str = ""
    """Why the last one failed; empty if it did not."""


def write_run_file(*, grpc_address: str, http_address: str, redis_url: str, namespace: str) -> Path:
    """Announce this process's cluster; the file is to be removed when it ends."""
    process = psutil.Process()
    run = RunFile(
        pid=process.pid,
        started_at=process.create_time(),
        grpc_address=grpc_address,
        http_address=http_address,
        redis_url=redis_url,
        namespace=namespace,
    )
    path = _path(run.pid)
    _write(path, run)
    return path


def note_rollout(path: Path, failure: str) -> None:
    """Say that a rolling update has ended, and why it failed, if it did."""
    run = RunFile.model_validate_json(path.read_text(encoding="utf-8"))
    noted = {"num_rollouts": run.num_rollouts + 1, "rollout_failure": failure}
    _write(path, run.model_copy(update=noted))


def find_run_file() -> RunFile | None:
    """The cluster of this user that was started last, if one is running."""
    runs = [run for path in _directory().glob("*.json") if (run := _read(path))]
    return max(runs, key=lambda run: run.started_at, default=None)


def reread_run_file(run: RunFile) -> RunFile | None:
    """What the file of a cluster says by now; None if the cluster has ended."""
    return _read(_path(run.pid))


def _write(path: Path, run: RunFile) -> None:
    # In one step: whoever reads meanwhile takes half a file for one that a killed cluster left.
    draft = path.with_suffix(".draft")
    draft.touch(mode=0o600)
    draft.write_text(run.model_dump_json(), encoding="utf-8")
    draft.replace(path)


def _path(pid: int) -> Path:
    return _directory() / f"{pid}.json"


def _read(path: Path) -> RunFile | None:
    """The cluster that a file tells of; what killed clusters left behind is cleared away."""
    try:
        run = RunFile.model_validate_json(path.read_text(encoding="utf-8"))
        if psutil.Process(run.pid).create_time() == run.started_at:
            return run
    except (OSError, ValidationError, psutil.NoSuchProcess):
        pass
    path.unlink(missing_ok=True)
    return None


def _directory() -> Path:
    """Private to the user. Raises PermissionError if it is somebody else's."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    directory = Path(base) / f"trunkline-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    return directory
