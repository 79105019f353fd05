"""The command by itself: exit codes, and errors in one line on standard error."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from ops.cli import _run
from tests.e2e.cluster import TRUNKLINE
from tests.e2e.patience import PATIENCE_S

TOKEN = "/proc/sys/kernel/random/boot_id"
"""A file with a line that may be a token."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path) -> Iterator[None]:
    """Commands look for clusters of this test and of no other, and change no environment but
    its."""
    with patch.dict(os.environ, {"XDG_RUNTIME_DIR": str(tmp_path)}):
        yield


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["nope"], 2, "No such command 'nope'"),
        (["generate"], 2, "Missing argument"),
        (["serve", "--replicas", "-1"], 2, "--replicas"),
        (["serve", "/no/such/model"], 2, "model: got '/no/such/model', expected one of demo"),
        (["serve", "/"], 2, "model: / has no config.json"),
        (["serve", "--config", "/no/such/file"], 2, "/no/such/file does not exist"),
        (
            ["serve", "demo-small", "--tp", "3"],
            2,
            "parallel.tensor: got 3, expected one of 1, 2, 4",
        ),
        (["serve", "demo-small", "--pp", "9"], 2, "engine.parallel.pipeline: got 9, expected at"),
        (["serve", "--tp", "0"], 2, "--tp"),
        (["serve", "--node-address", "0.0.0.0"], 2, "ray.node_address: got '0.0.0.0': "),
        (["serve", "--node-address", "198.18.255.1"], 2, "expected an address of this machine"),
        (
            ["serve", "--node-address", "127.0.0.1", "--ray-address", "127.0.0.1:1"],
            2,
            "expected only one of them",
        ),
        (
            ["serve", "--node-address", "127.0.0.1", "--redis-url", "unix:///tmp/x"],
            2,
            "redis.url: got a socket file, expected a server that other machines reach too",
        ),
        (["node"], 2, "--join"),
        (
            ["node", "--join", "127.0.0.1:1"],
            2,
            "no token: give --token-file, or set TRUNKLINE_JOIN",
        ),
        (["node", "--join", "x", "--token-file", "/no/file"], 2, "--token-file: "),
        (["node", "--join", "x", "--token-file", TOKEN], 2, "--join: got 'x', expected host:port"),
        (
            ["node", "--join", "127.0.0.1:1", "--token-file", "/dev/null"],
            2,
            "expected a token of 16 characters or more",
        ),
        (
            [
                "node",
                "--join",
                "127.0.0.1:1",
                "--token-file",
                TOKEN,
                "--node-address",
                "198.18.9.9",
            ],
            2,
            "--node-address: got 198.18.9.9, expected an address of this machine",
        ),
        (
            ["node", "--join", "127.0.0.1:1", "--token-file", TOKEN, "--labels", "x"],
            2,
            "--labels: got 'x', expected key=value",
        ),
        (
            ["node", "--join", "127.0.0.1:1", "--token-file", TOKEN],
            1,
            "127.0.0.1:1 cannot be reached: ",
        ),
        (["generate", "x", "--address", "127.0.0.1:1"], 1, "127.0.0.1:1: "),
        (["status"], 1, "no cluster runs on this machine"),
        (["status", "--redis-url", "unix:///no/such/socket"], 1, "unix:///no/such/socket: "),
        (["status", "--redis-url", "http://x"], 2, "--redis-url: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], exit_code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _run(arguments) == exit_code
    told = capfd.readouterr()
    assert told.err.startswith("trunkline: ")
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("router:\n  grpc_port: 70000\n", "router.grpc_port: got 70000: "),
        ("router:\n  grcp_port: 1\n", "router.grcp_port: "),
        ("router: [\n", "while parsing"),
    ],
)
def test_a_settings_file_that_is_wrong_is_named_by_field(
    text: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    assert _run(["serve", "--config", str(config)]) == 2
    told = capfd.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_help_names_all_commands() -> None:
    done = trunkline("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for command in ("serve", "generate", "chat", "status", "bench"):
        assert command in done.stdout


def test_a_process_ends_with_the_exit_code() -> None:
    done = trunkline("status")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("trunkline: no cluster runs on this machine")


def trunkline(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command as a process."""
    return subprocess.run(
        [*TRUNKLINE, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
