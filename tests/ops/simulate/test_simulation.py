"""Simulations repeat themselves and account for every request; routers see what they are told."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ops.cli import app
from ops.failure import UsageError
from ops.simulate.figures import simulated_figures
from ops.simulate.profile import DEFAULT, EngineProfile, ProfileError
from ops.simulate.simulation import ORACLE, simulate
from router.policies import POLICIES
from tests.ops.simulate.cluster_fixture import cluster, traffic


@pytest.mark.parametrize("policy", [*POLICIES, ORACLE])
def test_a_seed_gives_the_same_outcome_again(policy: str) -> None:
    sessions = traffic("chat", 80, 20.0)
    outcome = simulate(cluster(3, routers=2), policy, sessions, 5)
    assert outcome == simulate(cluster(3, routers=2), policy, sessions, 5)
    assert len(outcome.exchanges) == sum(outcome.requests)
    assert sum(outcome.requests) == sum(len(session.turns) for session in sessions)
    assert all(e.cached_tokens < e.num_prompt_tokens for e in outcome.exchanges)  # type: ignore[operator]


def test_turns_wait_for_the_last_answer_and_a_pause() -> None:
    (session,) = [s for s in traffic("chat", 60, 20.0) if len(s.turns) == 7][:1]
    exchanges = simulate(cluster(1), "prefix", [session], 0).exchanges
    for turn, before, after in zip(session.turns[1:], exchanges, exchanges[1:], strict=False):
        assert after.sent_s == pytest.approx(before.ended_s + turn.pause_s)
        assert after.cached_tokens >= before.num_prompt_tokens - 16  # type: ignore[operator]


def test_replicas_serve_nobody_elses_prefix() -> None:
    """One that round robin sends a session's second turn to has never seen the first."""
    sessions = [s for s in traffic("chat", 200, 0.1) if len(s.turns) == 2][:1]
    first, second = simulate(cluster(2), "round_robin", sessions, 0).exchanges
    assert (first.cached_tokens, second.cached_tokens) == (0, 0)
    first, second = simulate(cluster(2), "prefix", sessions, 0).exchanges
    assert second.cached_tokens > 0  # type: ignore[operator]


def test_figures_are_those_of_a_server_and_of_its_balance() -> None:
    outcome = simulate(cluster(4), "round_robin", traffic("mixed", 60, 8.0), 0)
    found = {metric.name: value for metric, value in simulated_figures(outcome).items()}
    assert {"TTFT mean", "TTFT p99", "TPOT p50", "cached tokens"} <= found.keys()
    assert found["most requests"] == 1.0
    assert 1.0 <= found["busiest replica"] <= 4.0


def test_a_profile_is_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    DEFAULT.save(file)
    assert EngineProfile.load(file) == DEFAULT
    file.write_text(file.read_text().replace('"num_blocks": 16384', '"num_blocks": 0'))
    with pytest.raises(ProfileError, match="num_blocks"):
        EngineProfile.load(file)


def test_between_measured_points_a_profile_is_straight_and_never_falls() -> None:
    assert DEFAULT.prefill_s(0, 512) == pytest.approx(512 / 16_000)
    seconds = [DEFAULT.prefill_s(0, length) for length in range(0, 100_000, 500)]
    assert seconds == sorted(seconds)
    steps = [DEFAULT.decode_s(sequences) for sequences in range(1, 600)]
    assert steps == sorted(steps)
    assert DEFAULT.decode_s(8) == pytest.approx(0.009)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["simulate", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_the_command_shows_policies_side_by_side(tmp_path: Path) -> None:
    file, profile = tmp_path / "rows.json", tmp_path / "profile.json"
    DEFAULT.save(profile)
    small = ("--workload=shared", "--requests=40", "--replicas=2", "--policies=prefix,random")
    files = (f"--profile={profile}", f"--json={file}")
    output = run(*small, *files, "--num-blocks=2048", "--runs=2")
    assert "prefix" in output
    assert "TTFT p99" in output
    rows = json.loads(file.read_text())
    assert {row["engine"] for row in rows} == {"prefix", "random"}
    assert all(row["low"] <= row["median"] <= row["high"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--workload=shared", "--policies=fastest"], "policy: got 'fastest', expected one of"),
        (["--workload=flood"], "--workload: got 'flood'"),
        ([], "--workload: got None"),
        (["--workload=shared", "--profile=nowhere.json"], "--profile"),
        (["--trace=nowhere.jsonl"], "--trace"),
        (["--measure=demo"], "--measure: expected --profile"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        run(*arguments, "--requests=5")


def test_a_real_engine_has_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE__ENGINE__MAX_NUM_SEQS", "4")
    file = tmp_path / "profile.json"
    run("--measure=demo-small", f"--profile={file}")
    profile = EngineProfile.load(file)
    assert (profile.name, profile.max_num_seqs) == ("demo-small", 4)
    assert sorted(profile.decode_step_ms) == [1, 2, 4]
    assert profile.num_blocks > 0
