"""However `trunkline serve` ends, no process of it is left.

That it ends by SIGTERM, the end of every other cluster shows; by SIGKILL, test_shared_prefixes."""

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from trunkline import (
    AsyncClient,
    Client,
    FinishReason,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
)

from tests.e2e.cluster import Cluster, serving, starting
from tests.e2e.patience import wait_until
from tests.e2e.settings import ENGINE, MAX_NUM_SEQS

MAX_IN_FLIGHT = 2
SETTINGS = {"engine": ENGINE, "router": {"max_in_flight": MAX_IN_FLIGHT, "max_queued": 0}}


@pytest.fixture(scope="module")
def small() -> Iterator[Cluster]:
    """A cluster of one replica that takes few requests at a time; its last test ends it."""
    with serving("demo-small", SETTINGS) as running:
        yield running


async def test_requests_above_the_limit_are_told_when_to_come_back(small: Cluster) -> None:
    once = RetryPolicy(max_attempts=1)
    async with (
        AsyncClient(small.grpc, retry=once) as client,
        httpx.AsyncClient(base_url=small.http) as http,
    ):
        running = [
            client.generate("x", max_tokens=1500, ignore_eos=True) for _ in range(MAX_IN_FLIGHT)
        ]
        for stream in running:
            await anext(stream)
        with pytest.raises(OverloadedError) as refused:
            await client.generate("x", max_tokens=1).text()
        assert refused.value.reason == "QUEUE_FULL"
        assert refused.value.retry_after_s is not None
        answer = await http.post("/v1/completions", json={"prompt": "x"})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) >= 1
        # Others are not in the way of those that run; nor is what is not counted.
        assert await client.tokenize("x")
        for stream in running:
            await stream.close()


async def test_a_client_that_comes_back_is_served(small: Cluster) -> None:
    """Five times as many clients as fit, all of which try again as they are told."""
    patient = RetryPolicy(max_attempts=1000)
    async with AsyncClient(small.grpc, retry=patient) as client:
        texts = await asyncio.gather(
            *(client.generate("x", max_tokens=4, seed=1).text() for _ in range(5 * MAX_IN_FLIGHT))
        )
    assert len(set(texts)) == 1


def test_ctrl_c_lets_running_requests_finish(small: Cluster) -> None:
    assert len(small.processes()) > 5
    with Client(small.grpc) as client:
        stream = client.generate("x", max_tokens=800, ignore_eos=True)
        deltas = [next(stream)]
        small.process.send_signal(signal.SIGINT)
        deltas.extend(stream)
    assert sum(len(delta.token_ids) for delta in deltas) == 800
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert small.wait_end() == 0
    assert small.traces == []


def test_a_start_that_fails_half_way_tells_why_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    with starting(str(tmp_path), {}) as failing:
        assert failing.wait_end() == 1
        assert "NoSuchModel" in failing.said


def test_ctrl_c_while_it_starts_ends_what_has_started() -> None:
    with starting("demo-small", {"engine": ENGINE}) as early:
        wait_until(lambda: len(early.processes()) > 5, "several processes have been started")
        early.process.send_signal(signal.SIGINT)
        assert early.wait_end() == 130
        assert early.traces == []


def test_a_second_ctrl_c_does_not_wait_for_running_requests() -> None:
    with serving("demo-small", {"engine": ENGINE}) as busy, Client(busy.grpc) as client:
        stream = client.generate("x", max_tokens=2000, ignore_eos=True, n=MAX_NUM_SEQS)
        next(stream)
        busy.process.send_signal(signal.SIGINT)
        wait_until(lambda: "a second Ctrl-C" in busy.said, "the first one is heeded")
        busy.process.send_signal(signal.SIGINT)
        assert busy.wait_end() == 130
        with pytest.raises(UnavailableError):
            list(stream)
