"""What a flood costs another tenant, in virtual time: the real queue, load estimate and scheduler,
and steps that take as long as their tokens."""

import asyncio
import heapq
from collections.abc import Iterator
from itertools import count
from random import Random

import numpy as np
from trunkline.internal.v1 import replica_pb2 as internal

from router.fleet.load_estimate import LoadEstimate
from router.fleet.prefill_rates import PrefillRates
from router.queue import DISCIPLINES, RequestQueue, Waiter
from router.queue.places import Places
from tests.router.queue.test_request_queue import settle
from tests.router.test_gate import Clock
from workers.engine.batch import Batch
from workers.engine.block_pool import BlockPool
from workers.engine.kv_blocks import KVBlocks
from workers.engine.rates import Rates
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import RequestGroup, Sequence

PLACES, PROMPT, OUTPUT = 16, 128, 32
CAPACITY = 13.0
"""Requests per second that the replica can do, about."""
LAST_S = 40.0
REPORT_S = 0.25

Arrival = tuple[float, str]


def seconds(batch: Batch) -> float:
    """A step: its weights, and each token."""
    decodes = batch.num_tokens - batch.num_prompt_tokens
    return 0.0025 + 0.0004 * decodes + 0.00036 * batch.num_prompt_tokens


class OneReplica:
    """A router's queue before one replica."""

    def __init__(self, queue: str) -> None:
        self.times_s: dict[str, list[float]] = {"modest": [], "flood": []}
        """To the first token of each request of a tenant."""
        self.num_ready = 1
        self._clock = Clock()
        self._clock.now = 0.0
        self._numbers = count()
        self._rates = Rates()
        self._scheduler = Scheduler(
            KVBlocks(BlockPool(4096), 16, share_prefixes=False, window=None),
            max_num_seqs=PLACES,
            max_num_batched_tokens=2048,
            rates=self._rates,
        )
        self._estimate = LoadEstimate("r@1", PrefillRates(self._now), self._now)
        self._queue = RequestQueue(
            DISCIPLINES[queue](),
            self,
            Places(1000),
            max_queued=10_000,
            max_waiting_s=1000.0,
            on_wait=lambda _: None,
            clock=self._now,
        )
        self._tokens: dict[str, asyncio.Queue[int]] = {}
        self._changed = asyncio.Event()

    @property
    def room(self) -> float:
        return self._estimate.room

    @property
    def room_to_run(self) -> float:
        return self._estimate.room_to_run

    async def changed(self) -> None:
        await self._changed.wait()

    async def run(self, arrivals: list[Arrival]) -> None:
        """Serve what arrives until LAST_S."""
        heapq.heapify(arrivals)
        report_at = 0.0
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            while self._now() < LAST_S:
                if self._now() >= report_at:
                    report_at += REPORT_S
                    self._report()
                batch = self._scheduler.schedule()
                end_s = self._now() + (seconds(batch) if batch.chunks else 0.001)
                while arrivals and arrivals[0][0] <= end_s:
                    self._clock.now, tenant = heapq.heappop(arrivals)
                    tasks.append(group.create_task(self._serve(tenant)))
                    await settle()
                if batch.chunks:
                    decodes = batch.num_tokens - batch.num_prompt_tokens
                    self._rates.observe(batch.num_prompt_tokens, decodes, seconds(batch))
                self._clock.now = end_s
                for sequence in list(self._computed(batch)):
                    self._sample(sequence)
                await settle()
            for task in tasks:
                task.cancel()

    def _now(self) -> float:
        return self._clock.now

    async def _serve(self, tenant: str) -> None:
        came_at, number = self._now(), next(self._numbers)
        async with self._queue.turn(Waiter(tenant, tokens=float(PROMPT))) as turn:
            booking = self._estimate.book(1, PROMPT)
            turn.sent()
            tokens = self._tokens[str(number)] = asyncio.Queue()
            self._scheduler.add(self._group(number, turn.yields))
            for num_tokens in range(OUTPUT):
                await tokens.get()
                if not num_tokens:
                    self._estimate.begin(booking)
                    self.times_s[tenant].append(self._now() - came_at)
                turn.serve(num_tokens + 1)
            self._estimate.release(booking)

    def _group(self, number: int, yields: bool) -> RequestGroup:
        params = SamplingParams(max_tokens=OUTPUT)
        request = Request(str(number), [0] * PROMPT, params, yields=yields)
        return RequestGroup(
            request, number, self._now(), max_output=OUTPUT, root_hash=b"", is_forked=True
        )

    def _computed(self, batch: Batch) -> Iterator[Sequence]:
        """Sequences that have their next token by a step."""
        for chunk in batch.chunks:
            chunk.sequence.num_computed = chunk.end
            if chunk.samples:
                yield chunk.sequence

    def _sample(self, sequence: Sequence) -> None:
        sequence.append(0)
        self._tokens[sequence.group.request.request_id].put_nowait(0)
        if sequence.num_output == OUTPUT:
            self._scheduler.remove(sequence)

    def _report(self) -> None:
        running, waiting = len(self._scheduler.running), self._scheduler.num_waiting
        self._estimate.report(
            internal.Load(
                running_sequences=running,
                waiting_requests=waiting,
                max_running_sequences=PLACES,
            )
        )
        self._changed.set()
        self._changed = asyncio.Event()


def arrivals(tenant: str, rate: float, begin_s: float) -> list[Arrival]:
    random, now, found = Random(tenant), begin_s, []
    while now < LAST_S:
        now += random.expovariate(rate)
        found.append((now, tenant))
    return found


async def p95_ms(queue: str, *, flooded: bool) -> float:
    """Of the tenant that asks for a tenth of what there is."""
    replica = OneReplica(queue)
    asked = [(0.0, "modest"), *arrivals("modest", CAPACITY / 10, 1.0)]
    if flooded:
        asked += [(0.5, "flood")] * 4 * PLACES + arrivals("flood", CAPACITY, 1.0)
    await replica.run(asked)
    assert not flooded or len(replica.times_s["flood"]) > 0.85 * CAPACITY * LAST_S
    return 1e3 * float(np.percentile(replica.times_s["modest"], 95))


async def test_a_flood_of_ten_times_as_much_does_not_make_others_wait_half_as_long_again() -> None:
    """And the replica still does nearly as much as it can."""
    assert await p95_ms("fair", flooded=True) <= 1.5 * await p95_ms("fair", flooded=False)


async def test_without_fair_shares_others_wait_behind_the_flood() -> None:
    assert await p95_ms("fcfs", flooded=True) > 10 * await p95_ms("fcfs", flooded=False)
