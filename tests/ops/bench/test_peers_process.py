"""An engine's process answers, fails in words, and stops while it is not its turn."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ops.bench.peers.process import Peer, PeerError
from ops.bench.peers.venvs import ROOT

ENGINE = """
import os, subprocess, sys
from ops.bench.peers.child import main

class Fake:
    def __init__(self, options):
        print("engines print what they like", flush=True)
        if options.get("broken"):
            raise ValueError("no such\\nmodel")
        if options.get("helper"):
            self.helper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def generate(self, prompts, output_tokens, on_token):
        if prompts[0] == [13]:
            os.abort()
        on_token()
        made = output_tokens - (prompts[0] == [7])
        return [[prompt[0]] * made for prompt in prompts]

main(Fake)
"""
Start = Callable[..., Peer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    program = tmp_path / "fake.py"
    program.write_text(ENGINE)
    peers: list[Peer] = []

    def launch(*command: str, **options: object) -> Peer:
        peer = Peer(
            command or (sys.executable, str(program)),
            options,
            directory=ROOT,
            environment={"PYTHONPATH": str(ROOT)},
            log=tmp_path / "log",
            timeout_s=60,
        )
        peers.append(peer)
        return peer

    yield launch
    for peer in peers:
        peer.close()


def state(process: int) -> str:
    """R, S, T for stopped, ..., or nothing for one that has ended: proc(5)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(processes: list[int], wanted: str) -> None:
    """Signals take effect a little later; pytest's time limit ends a wait that is in vain."""
    while {state(process) for process in processes} != {wanted}:
        pass


def group(leader: int) -> list[int]:
    numbers = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [number for number in numbers if _group_of(number) == leader]


def _group_of(process: int) -> int | None:
    try:
        return os.getpgid(process)
    except ProcessLookupError:
        return None


def test_answers_bring_tokens_and_times_whatever_the_engine_prints(
    start: Start, tmp_path: Path
) -> None:
    peer = start()
    answer = peer.ask([[5], [6]], 3)
    assert answer.token_ids == [[5, 5, 5], [6, 6, 6]]
    assert answer.first_s is not None
    assert 0 <= answer.first_s <= answer.seconds
    assert peer.ask([[8]], 1).token_ids == [[8]]
    assert "engines print" in (tmp_path / "log").read_text()


def test_a_pause_stops_all_that_the_engine_started(start: Start) -> None:
    peer = start(helper=True)
    peer.ask([[5]], 1)
    processes = group(peer.group)
    assert len(processes) == 2
    peer.pause()
    wait_until(processes, "T")
    peer.resume()
    assert peer.ask([[5]], 2).token_ids == [[5, 5]]


def test_closing_leaves_nothing_behind_even_when_paused(start: Start) -> None:
    peer = start(helper=True)
    peer.ask([[5]], 1)
    processes = group(peer.group)
    peer.pause()
    peer.close()
    wait_until(processes, "")


@pytest.mark.parametrize(
    ("options", "prompt", "words"),
    [
        ({"broken": True}, [5], "ValueError: no such model"),
        ({}, [13], "SIGABRT"),
        ({}, [7], "expected 2 tokens each"),
    ],
)
def test_failures_are_one_line(
    start: Start, options: dict[str, object], prompt: list[int], words: str
) -> None:
    with pytest.raises(PeerError, match=words) as failure:
        start(**options).ask([prompt], 2)
    assert "\n" not in str(failure.value)


def test_a_program_that_is_not_there_is_a_failure(start: Start) -> None:
    with pytest.raises(PeerError, match="/no/such/program: No such file"):
        start("/no/such/program")
