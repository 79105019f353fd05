"""Starts engines: their interpreters, environments, and models in the form that they read."""

import glob
import json
import os
import shutil
import subprocess
from hashlib import blake2b
from pathlib import Path

from ops.bench.peers.engine_spec import EngineSpec
from ops.bench.peers.process import Peer, PeerError
from ops.bench.peers.venvs import PEERS, ROOT, python

_ANSWER_TIMEOUT_S = 1800.0
_SHOWN_CHARACTERS = 300


class Launcher:
    """Starts engines with one model and `threads` compute threads each."""

    def __init__(self, model: Path, threads: int) -> None:
        self._model = model.absolute()
        self._threads = threads

    def launch(self, engine: EngineSpec) -> Peer:
        """The engine's process, which loads while it is asked the first time.

        Raises PeerError if it is not installed, or cannot have the model in its form.
        """
        interpreter = python(engine.venv)
        model = self._convert(engine, interpreter) if engine.format else self._model
        return Peer(
            _command(interpreter, engine),
            {**engine.options, "model": str(model), "threads": self._threads},
            directory=ROOT,
            environment=self._environment(engine),
            log=_log(engine.name),
            timeout_s=_ANSWER_TIMEOUT_S,
        )

    def _environment(self, engine: EngineSpec) -> dict[str, str]:
        environment = {"OMP_NUM_THREADS": str(self._threads), "HF_HUB_OFFLINE": "1"}
        if engine.preload:
            libraries = [_library(engine.venv, pattern) for pattern in engine.preload]
            environment["LD_PRELOAD"] = ":".join(libraries)
        return environment | dict(engine.environment)

    def _convert(self, engine: EngineSpec, interpreter: Path) -> Path:
        """The model in the engine's form, made once for each model and each form."""
        folder = PEERS / "models" / _digest(self._model)
        made = folder / f"{engine.module}-{engine.format}"
        if made.exists():
            return made
        folder.mkdir(parents=True, exist_ok=True)
        partial = made.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        log = _log(f"{engine.name} convert")
        options = {"model": str(self._model), "format": engine.format, "into": str(partial)}
        with log.open("wb") as output:
            done = subprocess.run(
                [*_command(interpreter, engine), "convert", json.dumps(options)],
                cwd=ROOT,
                env={**os.environ, **self._environment(engine)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "no reason given")
            raise PeerError(f"cannot convert the model: {last[:_SHOWN_CHARACTERS]} (log: {log})")
        partial.rename(made)
        return made


def _command(interpreter: Path, engine: EngineSpec) -> list[str]:
    return [str(interpreter), "-m", f"ops.bench.peers.engines.{engine.module}"]


def _library(venv: str, pattern: str) -> str:
    for root in (PEERS / venv, Path("/")):
        found = sorted(glob.glob(str(root / pattern)))
        if found:
            return found[0]
    raise PeerError(f"there is no {Path(pattern).name} (searched for {pattern})")


def _log(name: str) -> Path:
    folder = PEERS / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name.replace(' ', '-')}.log"


def _digest(model: Path) -> str:
    """Changes with the model's files."""
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(model.iterdir())]
    return f"{model.name}-{blake2b(repr(files).encode(), digest_size=6).hexdigest()}"
