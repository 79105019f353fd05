"""Gangs of real processes: they compute what one rank does, and no loss goes unnoticed."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from cluster.settings import EngineSettings
from tests.workers.engine.forked_ranks import CONTEXT, ForkedRanks
from workers.engine.engine import Engine
from workers.engine.engine_start import start_engine
from workers.engine.launcher import RankNotStarted
from workers.engine.llm import LLM
from workers.engine.request import FinishReason, Request
from workers.engine.sampling_params import SamplingParams
from workers.parallel.group import RankLostError

PROMPTS = [[5, 6, 7], [9] * 40, [11, 12]]


def _settings(**changes: Any) -> EngineSettings:
    small = {"dtype": "float32", "kv_cache_bytes": 2**20, "num_threads": 1}
    return EngineSettings.model_validate(small | changes)


@pytest.fixture
def ranks(tmp_path: Path) -> ForkedRanks:
    return ForkedRanks(tmp_path)


@contextmanager
def _engine(folder: Path, ranks: ForkedRanks, **parallel: int) -> Iterator[Engine]:
    engine = start_engine(folder, _settings(parallel=parallel), lambda: ranks)
    try:
        yield engine
    finally:
        engine.close()


def _add(engine: Engine, max_tokens: int, ignore_eos: bool = True) -> None:
    for number, prompt in enumerate(PROMPTS):
        params = SamplingParams(max_tokens=max_tokens, seed=number, ignore_eos=ignore_eos)
        engine.add(Request(str(number), prompt, params))


def _run(engine: Engine) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    while engine.has_work:
        for output in engine.step():
            assert output.finish_reason is not FinishReason.ERROR
            tokens.setdefault(output.request_id, []).extend(output.token_ids)
    return tokens


def _step_without_end(engine: Engine) -> None:
    """Steps that would go on until the length limit."""
    _add(engine, max_tokens=400)
    while True:
        engine.step()


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[int]]:
    """What one rank answers."""
    engine = Engine(folder, _settings())
    _add(engine, max_tokens=8)
    return _run(engine)


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"tensor": 2, "pipeline": 2}], ids=str)
def test_tokens_are_those_of_one_rank_and_nothing_is_left(
    folder: Path, tmp_path: Path, expected: dict[str, list[int]], parallel: dict[str, int]
) -> None:
    def answer() -> None:
        ranks = ForkedRanks(tmp_path)
        with _engine(folder, ranks, **parallel) as engine:
            _add(engine, max_tokens=8)
            assert _run(engine) == expected
            _add(engine, max_tokens=8)  # whose prefixes are cached now
            assert _run(engine) == expected
        assert {process.exitcode for process in ranks.processes} == {0}

    before = _belongings()
    answer()
    assert _belongings() == before


def test_progress_is_that_of_all_ranks_and_the_smallest_decides_on_blocks(
    folder: Path, ranks: ForkedRanks
) -> None:
    """Of three layers, the first stage has two: half as many of its blocks fit."""
    seen: list[tuple[int, int]] = []
    settings = _settings(parallel={"pipeline": 2})
    engine = start_engine(folder, settings, lambda: ranks, lambda *now: seen.append(now))
    alone = Engine(folder, _settings())
    assert max(seen) == (3, 3)
    assert alone.load().total_blocks < engine.load().total_blocks < 2 * alone.load().total_blocks
    engine.close()


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"pipeline": 2}], ids=str)
def test_a_killed_rank_ends_the_step_that_waits_for_it(
    folder: Path, ranks: ForkedRanks, parallel: dict[str, int]
) -> None:
    with _engine(folder, ranks, **parallel) as engine:
        [rank] = ranks.processes
        killer = threading.Timer(0.2, rank.kill)
        killer.start()
        with pytest.raises(RankLostError):
            _step_without_end(engine)
        with pytest.raises(RankLostError, match=rf"rank 1 \(process {rank.pid} .*ended"):
            engine.step()


def test_a_step_that_is_broken_off_ends_the_gang(
    folder: Path, ranks: ForkedRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ranks have been sent what the leader has not done: later answers would be wrong."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with _engine(folder, ranks, tensor=2) as engine:
        _add(engine, max_tokens=8)
        engine.step()
        with monkeypatch.context() as patch:
            patch.setattr(engine.model.backend, "prepare", interrupted)
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        with pytest.raises(RankLostError, match="broken off"):
            engine.step()


def test_a_rank_lost_among_several_takes_the_others_with_it(
    folder: Path, ranks: ForkedRanks
) -> None:
    with _engine(folder, ranks, tensor=2, pipeline=2) as engine:
        ranks.processes[2].kill()
        with pytest.raises(RankLostError):
            _step_without_end(engine)
        for process in ranks.processes:
            process.join()


def test_a_silent_rank_is_given_up_and_the_stacks_of_all_others_are_told(
    folder: Path, ranks: ForkedRanks, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are waiting for it: in the first stage's exchange, and in the next stage."""
    with _engine(folder, ranks, tensor=2, pipeline=2) as engine:
        *left, stopped = ranks.processes
        assert stopped.pid is not None
        os.kill(stopped.pid, signal.SIGSTOP)
        with pytest.raises(RankLostError):
            _step_without_end(engine)
        with pytest.raises(RankLostError, match=r"rank 3 .* silent for 3 s"):
            engine.step()
        for process in left:
            process.join()
    assert "in _step_without_end" in capfd.readouterr().err
    assert ranks.logs().count("in follow") == len(left)


def test_a_rank_that_cannot_load_says_why(folder: Path, tmp_path: Path, ranks: ForkedRanks) -> None:
    """The leader, of the last stage, has no need of what is missing."""
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    settings = _settings(parallel={"pipeline": 2})
    with pytest.raises(RankLostError) as failure:
        start_engine(tmp_path, settings, lambda: ranks)
    [process] = ranks.processes
    assert str(failure.value).startswith(f"rank 1 (process {process.pid} on 127.0.0.1) failed: ")
    assert "model.layers.0.mlp.down_proj.weight" in str(failure.value)
    assert "\n" not in str(failure.value)
    assert not process.is_alive()


class LeavesAtOnce(ForkedRanks):
    """Ranks that end before they come."""

    def launch(self, rank: int, address: str, token: str) -> None:
        super().launch(rank, "127.0.0.1:1", token)


def test_a_rank_that_ends_before_it_comes_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    settings = _settings(parallel={"tensor": 2})
    with pytest.raises(RankNotStarted, match="exit code 1"):
        start_engine(folder, settings, lambda: LeavesAtOnce(tmp_path))


def _lead(folder: Path, results: "Connection[Any, Any]") -> None:
    """A leader with ranks as LLM starts them, until it is killed."""
    with LLM(folder, _settings(parallel={"tensor": 2})) as llm:
        _add(llm.engine, max_tokens=8)
        results.send((_run(llm.engine), [child.pid for child in psutil.Process().children()]))
        _step_without_end(llm.engine)


def test_ranks_end_with_a_leader_that_is_killed(
    folder: Path, expected: dict[str, list[int]]
) -> None:
    ours, theirs = multiprocessing.Pipe()
    leader = CONTEXT.Process(target=_lead, args=(folder, theirs))
    leader.start()
    theirs.close()
    tokens, children = ours.recv()
    assert tokens == expected
    assert len(children) == 1
    ranks = [psutil.Process(pid) for pid in children]
    leader.kill()
    leader.join()
    _, left = psutil.wait_procs(ranks, timeout=60)
    assert left == []


def _belongings() -> tuple[int, set[str], list[str]]:
    """What a gang must give back: descriptors, kinds of threads, shared memory."""
    gc.collect()
    forkserver.ensure_running()
    names = sorted(os.listdir("/proc/self/fd"))
    memory = [
        target for name in names if (target := _link_of(name)) is not None and "memfd" in target
    ]
    threads = {t.name for t in threading.enumerate() if t.name.startswith("control")}
    return len(names), threads, memory


def _link_of(descriptor: str) -> str | None:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        return None
