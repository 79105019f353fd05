"""Makes the Python stubs of the contract from its proto files.

Run `python -m ops.stubs` to write them, `python -m ops.stubs --check` to compare only.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).parents[1] / "proto"
# Beside it lies what building a wheel leaves behind.
_PACKAGE = "trunkline"
_STUB_PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def main() -> int:
    """Writes the stubs, or with --check compares them; 1 if they are stale."""
    parser = argparse.ArgumentParser(prog="python -m ops.stubs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 if stubs are stale")
    if not parser.parse_args().check:
        write_stubs(PROTO_ROOT)
        return 0
    stale = stale_stubs(PROTO_ROOT)
    for path in stale:
        print(f"stale: {PROTO_ROOT.name}/{path}; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def write_stubs(proto_root: Path) -> None:
    """Brings the stubs below `proto_root` in line with its proto files, deleting left-over ones."""
    wanted = _generate(proto_root)
    for path in _stubs_in(proto_root).keys() - wanted.keys():
        (proto_root / path).unlink()
    for path, content in wanted.items():
        (proto_root / path).write_bytes(content)


def stale_stubs(proto_root: Path) -> list[Path]:
    """Stubs below `proto_root` that are missing, left over or differ, as relative paths."""
    wanted, present = _generate(proto_root), _stubs_in(proto_root)
    return sorted(
        path for path in wanted.keys() | present.keys() if wanted.get(path) != present.get(path)
    )


def _generate(proto_root: Path) -> dict[Path, bytes]:
    protos = sorted((proto_root / _PACKAGE).rglob("*.proto"))
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory)
        _protoc(proto_root, output, ("python_out=", "mypy_out=quiet:"), protos)
        # Only files with a service get gRPC stubs; the plugin would write empty ones otherwise.
        services = [proto for proto in protos if "\nservice " in proto.read_text()]
        _protoc(proto_root, output, ("grpc_python_out=", "mypy_grpc_out=quiet:"), services)
        return _stubs_in(output)


def _protoc(proto_root: Path, output: Path, plugins: tuple[str, ...], protos: list[Path]) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto_root}"]
    command += [f"--{plugin}{output}" for plugin in plugins]
    command += map(str, protos)
    # The mypy plugins lie beside the interpreter, which need not be on PATH.
    search_path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": search_path}
    subprocess.run(command, env=environment, check=True)


def _stubs_in(root: Path) -> dict[Path, bytes]:
    return {
        path.relative_to(root): path.read_bytes()
        for pattern in _STUB_PATTERNS
        for path in (root / _PACKAGE).rglob(pattern)
    }


if __name__ == "__main__":
    sys.exit(main())
