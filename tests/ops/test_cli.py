"""The command by itself: exit codes, and errors in one line on standard error."""

from pathlib import Path

import pytest

from tests.ops.cluster_fixture import trunkline


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["nope"], 2, "No such command 'nope'"),
        (["generate"], 2, "Missing argument"),
        (["serve", "--replicas", "-1"], 2, "--replicas"),
        (["serve", "/no/such/model"], 2, "model: got '/no/such/model', expected one of demo"),
        (["serve", "/"], 2, "model: / has no config.json"),
        (["serve", "--config", "/no/such/file"], 2, "/no/such/file does not exist"),
        (["generate", "x", "--address", "127.0.0.1:1"], 1, "127.0.0.1:1: "),
        (["status"], 1, "no cluster runs on this machine"),
        (["status", "--redis-url", "unix:///no/such/socket"], 1, "unix:///no/such/socket: "),
        (["status", "--redis-url", "http://x"], 2, "--redis-url: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], exit_code: int, message: str, tmp_path: Path
) -> None:
    done = trunkline(*arguments, run_directory=tmp_path)
    assert done.returncode == exit_code
    assert done.stderr.startswith("trunkline: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("router:\n  grpc_port: 70000\n", "router.grpc_port: got 70000: "),
        ("router:\n  grcp_port: 1\n", "router.grcp_port: "),
        ("router: [\n", "while parsing"),
    ],
)
def test_a_settings_file_that_is_wrong_is_named_by_field(
    text: str, message: str, tmp_path: Path
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    done = trunkline("serve", "--config", str(config), run_directory=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_all_commands(tmp_path: Path) -> None:
    done = trunkline("--help", run_directory=tmp_path)
    assert done.returncode == 0
    for command in ("serve", "generate", "chat", "status", "bench"):
        assert command in done.stdout
