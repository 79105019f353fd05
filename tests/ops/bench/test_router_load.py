"""`trunkline bench router --figures load`: a router in its own process, between two others."""

import asyncio
import math
from pathlib import Path

import grpc
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.internal.v1.replica_pb2_grpc import ReplicaServiceStub

from ops.bench.router_load.answers import Answers
from ops.bench.router_load.bench import BARE, bench_load
from ops.bench.router_load.child import child
from ops.bench.router_load.pace import Pace
from ops.bench.router_load.turn import Flooded, Paced, Sizes


def test_all_figures_of_both_protocols_are_measured() -> None:
    sizes = Sizes((Paced(2, 5, 4),), (Flooded(2, 64),), short_requests=4, warm_up_requests=2)
    rows = bench_load(1, (), sizes)
    assert all(math.isfinite(row.median) for row in rows)
    assert {row.engine for row in rows} == {BARE, "trunkline"}
    for protocol in ("grpc", "http"):
        metrics = [
            (r.work.removeprefix(f"{protocol}, "), r.metric)
            for r in rows
            if r.engine == "trunkline" and r.work.startswith(f"{protocol}, ")
        ]
        flooded, short = "2 streams, no pause between steps", ("answer of one token", "CPU")
        assert metrics == [
            ("2 streams", "TTFT p50"),
            ("2 streams", "TTFT p99"),
            ("2 streams", "token messages a core"),
            ("2 streams", "tokens a message"),
            ("2 streams", "CPU of a stream of 64"),
            ("2 streams", "added TTFT p50"),
            ("2 streams", "added TTFT p99"),
            (flooded, "tokens a core"),
            (flooded, "tokens a message"),
            *((short, ("tokenize", "CPU")) if protocol == "grpc" else (short,)),
        ]
    assert all(row.median >= 1 for row in rows if row.metric == "tokens a message")


async def test_a_flood_begins_when_all_streams_are_there_and_keeps_step(tmp_path: Path) -> None:
    prompt = Pace(0, together=3).in_prompt().encode()
    sizes: list[int] = []
    async with (
        child("ops.bench.router_load.replica", directory=tmp_path) as replica,
        grpc.aio.insecure_channel(replica.addresses["replica"]) as channel,
    ):
        stream = ReplicaServiceStub(channel).Connect()
        await stream.write(internal.ConnectRequest(hello=internal.RouterHello(replica_id="r")))
        for handle in (1, 2, 3):
            submit = internal.Submit(handle=handle, prompt_token_ids=prompt)
            submit.stop.max_tokens = 5
            await stream.write(internal.ConnectRequest(submits=[submit]))
        while sum(sizes) < 15:
            frame = await stream.read()
            assert isinstance(frame, internal.ConnectResponse)
            sizes += [len(frame.outputs)] if frame.outputs else []
    assert sizes == [1, 1, 1, 3, 3, 3, 3]


async def test_answers_within_ray_serve_have_as_many_letters_as_asked_for() -> None:
    answers, prompt = Answers(), Pace(0, together=2).in_prompt()

    async def letters() -> list[str]:
        return [letter async for letter in answers.stream(prompt, 7)]

    assert [*await asyncio.gather(letters(), letters())] == [["a"] * 7] * 2
    assert await answers.whole(prompt, 7) == "a" * 7
