"""`trunkline serve` for real: what it prints works, and nothing of it outlives it."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.ops.cluster_fixture import serving, short_directory, status, trunkline

Cluster = tuple["subprocess.Popen[str]", str, Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with short_directory() as directory, serving(directory, "demo-small") as (process, block):
        yield process, block, directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


def _children(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, left = psutil.wait_procs(processes, timeout=30)
    return [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_the_block_names_endpoints_that_work(cluster: Cluster) -> None:
    _, block, _ = cluster
    assert "Trunkline serves demo-small (1 replica)" in block
    url = next(word for word in block.split() if word.startswith("http://"))
    [model] = httpx.get(f"{url}/models").json()["data"]
    assert model["id"] == "demo-small"


def test_generate_streams_to_standard_output(cluster: Cluster) -> None:
    *_, directory = cluster
    arguments = ("--max-tokens", "8", "--temperature", "0")
    first = trunkline("generate", "import", *arguments, run_directory=directory)
    again = trunkline("generate", "-", *arguments, run_directory=directory, stdin="import")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.strip()
    assert again.stdout == first.stdout


def test_chat_answers_every_line_until_the_end_of_input(cluster: Cluster) -> None:
    *_, directory = cluster
    talk = "Hello\n\nWhat is a list?\n"
    done = trunkline("chat", "--max-tokens", "8", run_directory=directory, stdin=talk)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 2


def test_a_bad_option_is_refused_with_the_field_named(cluster: Cluster) -> None:
    *_, directory = cluster
    done = trunkline("generate", "x", "--temperature", "2000", run_directory=directory)
    assert done.returncode == 1
    assert "options.sampling.temperature" in done.stderr


def test_status_tells_of_replicas_and_their_load(cluster: Cluster) -> None:
    *_, directory = cluster
    [replica] = status(directory)
    assert replica["model"] == "demo-small"
    assert isinstance(replica["generated_tokens"], int)
    table = trunkline("status", run_directory=directory)
    assert str(replica["pid"]) in table.stdout


def test_a_router_that_dies_is_started_again_at_the_same_address(cluster: Cluster) -> None:
    process, _, directory = cluster
    [router] = [p for p in _children(process) if "router.main" in p.cmdline()]
    router.kill()
    psutil.wait_procs([router])
    # The SDK tries again while nobody listens.
    while trunkline("generate", "x", "--max-tokens", "1", run_directory=directory).returncode:
        pass


def test_a_start_that_fails_half_way_tells_why_and_leaves_nothing(directory: Path) -> None:
    (directory / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    before = {p.pid for p in psutil.process_iter()}
    ports = ("--grpc-port", "0", "--http-port", "0")
    done = trunkline("serve", str(directory), *ports, run_directory=directory)
    assert done.returncode == 1
    assert "NoSuchModel" in done.stderr
    after = [p for p in psutil.process_iter() if p.pid not in before]
    assert [p for p in after if _belongs_to(p, directory)] == []


def test_after_sigterm_nothing_is_left(cluster: Cluster) -> None:
    process, _, directory = cluster
    children = _children(process)
    assert len(children) > 5
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert _alive(children) == []
    assert list(directory.glob("*/*.json")) == []


def test_after_sigkill_nothing_is_left(directory: Path) -> None:
    with serving(directory, "demo-small") as (process, _):
        children = _children(process)
        process.kill()
        process.wait()
        assert _alive(children) == []
    assert "no cluster runs" in trunkline("status", run_directory=directory).stderr


def _belongs_to(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.environ().get("XDG_RUNTIME_DIR") == str(directory)
    except psutil.Error:
        return False
