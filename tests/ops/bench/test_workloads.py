"""Workloads repeat themselves, keep their rate, and share what they say they share."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ops.bench.cli import app
from ops.bench.load import Answer, LoadError
from ops.bench.load_sessions import Pace, run_sessions
from ops.bench.workloads.bound import best_cached_percent
from ops.bench.workloads.draw import Zipf
from ops.bench.workloads.named import SCRIPTS, sessions
from ops.bench.workloads.session import Piece, Session, Turn, num_requests, token_ids
from ops.bench.workloads.trace import TraceError, read_trace
from ops.failure import UsageError
from tests.proto import fake_inference
from tests.proto.fake_inference import FakeInference

names = st.sampled_from(sorted(SCRIPTS))


@given(st.text(max_size=9), st.integers(0, 300), st.integers(0, 300), st.integers(1, 5000))
def test_pieces_of_one_key_begin_alike(key: str, one: int, other: int, vocab_size: int) -> None:
    short, long = sorted((one, other))
    ids = Piece(key, long).token_ids(vocab_size)
    assert len(ids) == long
    assert ids[:short] == Piece(key, short).token_ids(vocab_size)
    assert all(0 <= token < vocab_size for token in ids)


@given(names, st.integers(1, 60), st.integers(0, 3))
def test_a_seed_gives_the_same_sessions_again(name: str, requests: int, seed: int) -> None:
    made = sessions(name, str(seed), requests)
    assert made == sessions(name, str(seed), requests)
    assert num_requests(made) >= requests
    assert len({session.session_id for session in made}) == len(made)
    assert [s.start_s for s in made] == sorted(s.start_s for s in made)
    turns = [turn for session in made for turn in session.turns]
    assert all(turn.output_tokens > 0 and turn.pause_s >= 0 for turn in turns)
    assert all(piece.length > 0 for turn in turns for piece in turn.pieces)


@given(names)
def test_other_seeds_share_no_text(name: str) -> None:
    one, other = (
        {p.key for s in sessions(name, seed, 50) for t in s.turns for p in t.pieces}
        for seed in ("1", "2")
    )
    assert not one & other


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_about_one_request_comes_per_second(name: str) -> None:
    made = sessions(name, "0", 3000)
    assert 0.7 < num_requests(made) / made[-1].start_s < 1.4


def test_scale_multiplies_lengths() -> None:
    whole, half = (
        [p.length for s in sessions("agent", "0", 100, scale) for t in s.turns for p in t.pieces]
        for scale in (1.0, 0.5)
    )
    assert all(abs(a - 2 * b) <= 2 for a, b in zip(whole, half, strict=True))


def test_few_system_prompts_are_asked_after_often() -> None:
    asked = Counter(s.turns[0].pieces[0].key for s in sessions("shared", "0", 2000))
    assert len(asked) > 100
    assert asked.most_common(1)[0][1] > 2000 / 128 * 10


def test_documents_come_in_any_order() -> None:
    orders = [tuple(p.key for p in s.turns[0].pieces[1:5]) for s in sessions("retrieval", "0", 500)]
    assert all(len(set(order)) == 4 for order in orders)
    assert any(order != tuple(sorted(order)) for order in orders)


def test_a_burst_is_about_one_prompt_and_comes_at_once() -> None:
    made = sessions("burst", "0", 240)
    by_prompt: dict[str, list[float]] = {}
    for session in made:
        by_prompt.setdefault(session.turns[0].pieces[0].key, []).append(session.start_s)
    assert {len(starts_s) for starts_s in by_prompt.values()} == {24}
    assert all(starts_s[-1] - starts_s[0] < 2.0 for starts_s in by_prompt.values())


@given(st.integers(1, 20), st.floats(0, 2), st.integers())
def test_zipf_draws_all_and_the_first_no_less_often(n: int, exponent: float, seed: int) -> None:
    zipf = Zipf(Random(seed), n, exponent)
    assert sorted(zipf.distinct(n)) == list(range(n))
    drawn = Counter(zipf.draw() for _ in range(2000))
    assert drawn[0] >= drawn[n - 1] - 150


def test_the_most_that_can_be_cached_is_what_was_said_before() -> None:
    prompt, one, other = Piece("prompt", 60), Piece("one", 40), Piece("other", 20)
    talk = Session("a", 0.0, [Turn([prompt, one], 10), Turn([other], 5)])
    again = Session("b", 1.0, [Turn([prompt, one], 10)])
    # The second turn finds prompt and answer, the last prompt all but its last token.
    assert best_cached_percent([talk, again]) == pytest.approx(100 * (110 + 99) / (100 + 130 + 100))
    assert best_cached_percent(sessions("mixed", "0", 20)) == 0.0


def line(timestamp: float, length: int, hash_ids: list[int]) -> str:
    fields = {"timestamp": timestamp, "input_length": length, "output_length": 7}
    return json.dumps({**fields, "hash_ids": hash_ids})


def test_a_trace_shares_tokens_where_ids_are_equal(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    lines = [line(3000, 1100, [1, 2, 3]), line(1000, 1030, [1, 2, 4]), line(2000, 700, [9])]
    file.write_text("\n".join(lines) + "\n")
    later, first, padded = sorted(read_trace(file, "0"), key=lambda s: s.session_id)
    assert (first.start_s, padded.start_s, later.start_s) == (0.0, 1.0, 2.0)
    one, other = (token_ids(s.turns[0].pieces, 1000) for s in (later, first))
    assert (len(one), len(other), later.turns[0].output_tokens) == (1100, 1030, 7)
    assert one[:1024] == other[:1024]
    assert one[1024:1030] != other[1024:]
    assert len(token_ids(padded.turns[0].pieces, 1000)) == 700
    assert read_trace(file, "0") != read_trace(file, "1")
    assert len(read_trace(file, "0", limit=2)) == 2


def test_milliseconds_may_be_said(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line(0, 5, [1]) + "\n" + line(1500, 5, [1]).replace("stamp", "stamp_ms"))
    assert [s.start_s for s in read_trace(file, "0")] == [0.0, 1.5]


@pytest.mark.parametrize("bad", ["{", "[]", "{}", line(0, 0, [1]), line(0, 5, ["x"])])  # type: ignore[list-item]
def test_what_is_no_trace_is_refused_by_its_line(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line(0, 5, [1]) + "\n" + bad + "\n")
    with pytest.raises(TraceError, match="line 2"):
        read_trace(file, "0")


class Echo:
    """Answers each request with its own last token, and notes what was asked."""

    def __init__(self, *, tells_tokens: bool) -> None:
        self.prompts: list[tuple[str, list[int]]] = []
        self._tells_tokens = tells_tokens

    async def model(self) -> str:
        return "echo"

    async def generate(
        self,
        model: str,
        prompt: list[int],
        output_tokens: int,
        on_tokens: Callable[[], None],
        session_id: str = "",
    ) -> Answer:
        if prompt[-1] == 0:
            raise LoadError("BROKEN", "asked to")
        self.prompts.append((session_id, list(prompt)))
        on_tokens()
        ids = [prompt[-1]] * output_tokens if self._tells_tokens else []
        return Answer(output_tokens, ids, len(prompt) // 2)

    async def close(self) -> None: ...


@pytest.mark.parametrize("tells_tokens", [True, False])
@pytest.mark.parametrize("clients", [None, 2])
async def test_each_turn_goes_on_from_the_last_answer(
    tells_tokens: bool, clients: int | None
) -> None:
    made = sessions("chat", "0", 40, 0.1)
    target = Echo(tells_tokens=tells_tokens)
    pace = Pace(clients, rate=1e4, speed=1e6)
    exchanges = await run_sessions(target, "echo", made, pace, 1000)
    assert all(e.error is None and e.cached_tokens == e.num_prompt_tokens // 2 for e in exchanges)
    for session in made:
        prompts = [prompt for name, prompt in target.prompts if name == session.session_id]
        assert len(prompts) == len(session.turns)
        for number, (before, after) in enumerate(pairwise(prompts), 1):
            said = token_ids(session.turns[number].pieces, 1000)
            answer = [before[-1]] * session.turns[number - 1].output_tokens
            if not tells_tokens:
                answer = session.answer(number - 1).token_ids(1000)
            assert after == before + answer + said


async def test_a_session_ends_with_a_request_that_fails() -> None:
    broken = Session("a", 0.0, [Turn([Piece("x", 3)], 2), Turn([Piece("y", 3)], 2)])
    exchanges = await run_sessions(Echo(tells_tokens=True), "echo", [broken], Pace(1), 1)
    assert [e.error.kind for e in exchanges if e.error] == ["BROKEN"]


@pytest.mark.parametrize("source", ["workload", "trace"])
def test_the_command_sends_a_workload_or_a_trace(tmp_path: Path, source: str) -> None:
    trace, rows_file = tmp_path / "trace.jsonl", tmp_path / "rows.json"
    trace.write_text("\n".join(line(10 * i, 600, [1, i]) for i in range(5)))
    chosen = f"--trace={trace}" if source == "trace" else "--workload=chat"
    service = FakeInference()
    with fake_inference.serve(service) as address:
        arguments = [address, chosen, "--requests=5", "--runs=1", "--scale=0.05", "--speed=1000"]
        result = CliRunner().invoke(app, ["serve", *arguments, f"--json={rows_file}"])
    assert result.exit_code == 0, result.output
    rows = {row["metric"]: row for row in json.loads(rows_file.read_text())}
    assert rows["errors"]["high"] == 0
    assert {"TTFT p95", "TPOT p50", "cached tokens"} <= rows.keys()
    assert rows["errors"]["work"].startswith("trace.jsonl" if source == "trace" else "chat x 0.05")
    sessions_seen = {request.options.session_id for request in service.generations[4:]}
    assert sessions_seen
    assert "" not in sessions_seen


def test_unknown_workloads_are_refused_by_name() -> None:
    result = CliRunner().invoke(app, ["serve", "localhost:1", "--workload=flood"])
    assert isinstance(result.exception, UsageError)
    assert "'flood', expected one of shared, chat" in str(result.exception)
