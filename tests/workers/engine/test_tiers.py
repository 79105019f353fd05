"""Blocks that leave the cache for host memory or Redis and come back: no answer changes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from redis.asyncio import Redis

from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.events import CacheChange, joined
from cluster.settings import EngineSettings, Settings
from tests.cluster.redis_fixture import running_redis
from tests.workers.engine.forked_ranks import ForkedRanks
from tests.workers.engine.test_engine_mix import WISHES, Wish, run, samples
from tests.workers.engine.thread_gang import with_ranks
from workers.engine.engine import Engine
from workers.engine.engine_start import start_engine
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams
from workers.layers.kv_cache import KVCache
from workers.models.config import ModelConfig

BLOCK = 8
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
PROMPTS = [[3 + i, *[5, 6, 7, 8] * 10] for i in range(4)]
"""41 tokens each, of which 5 blocks can be shared."""


def engine_settings(folder: Path, num_blocks: int, **changes: Any) -> EngineSettings:
    dtype = torch.int8 if changes.get("kv_cache_dtype") == "int8" else torch.float32
    size = KVCache.bytes_per_block(ModelConfig.read(folder), BLOCK, dtype)
    fields = {
        "dtype": "float32",
        "block_size": BLOCK,
        "num_threads": 1,
        "kv_cache_bytes": num_blocks * size,
        "host_cache_bytes": 2**22,
    }
    return EngineSettings.model_validate(fields | changes)


class Answer(NamedTuple):
    token_ids: list[int]
    cached: int


def ask(engine: Engine, *prompts: list[int]) -> list[Answer]:
    """All at once."""
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), prompt, GREEDY))
    found = [Answer([], 0) for _ in prompts]
    while engine.has_work:
        for output in engine.step():
            number = int(output.request_id)
            cached = output.started.cached_prompt_tokens if output.started else 0
            found[number] = Answer(
                found[number].token_ids + output.token_ids, found[number].cached + cached
            )
    engine.check_integrity()
    return found


def in_turn(engine: Engine) -> list[Answer]:
    """Each prompt twice, in a cache that has room for one of them."""
    return [answer for _ in range(2) for prompt in PROMPTS for answer in ask(engine, prompt)]


def check_in_turn(found: list[Answer], folder: Path, **changes: Any) -> None:
    alone = Engine(folder, engine_settings(folder, 99, host_cache_bytes=0, **changes))
    expected = in_turn(alone)
    assert [a.token_ids for a in found] == [a.token_ids for a in expected]
    assert [a.cached for a in found[:4]] == [0] * 4
    assert [a.cached for a in found[4:]] == [40] * 4


@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_prompts_come_back_from_host_memory(folder: Path, dtype: str) -> None:
    engine = Engine(folder, engine_settings(folder, 8, kv_cache_dtype=dtype))
    assert engine.load().fetch_tokens_per_s == 0
    check_in_turn(in_turn(engine), folder, kv_cache_dtype=dtype)
    assert engine.stats.tiers.host_hit_tokens > 0
    assert engine.stats.tiers.blocks_loaded > 0
    assert engine.load().fetch_tokens_per_s > 0
    engine.clear_prefix_cache()
    assert ask(engine, PROMPTS[0])[0].cached == 0


def test_requests_find_what_listeners_were_told_of_and_where(folder: Path) -> None:
    """So a router that hears the engine knows what a prompt would find in each tier."""
    engine = Engine(folder, engine_settings(folder, 10))
    hashes = [_hashes(engine, prompt) for prompt in PROMPTS]
    engine.listen_to_cache()
    directory = PrefixDirectory(1000)
    tell = {
        CacheChange.STORED: directory.store,
        CacheChange.LOWERED: directory.lower,
        CacheChange.REMOVED: directory.remove,
    }
    lowered = []
    for turn in (0, 1, 0, 1, 2, 3, 0, 0):
        held = directory.held(hashes[turn])
        lowered.append(held.lowered.get("r@1", 0))
        before = engine.stats.tiers.host_hit_tokens
        (answer,) = ask(engine, PROMPTS[turn])
        assert answer.cached == BLOCK * held.depths.get("r@1", 0)
        assert engine.stats.tiers.host_hit_tokens - before == BLOCK * lowered[-1]
        for change, blocks in engine.take_cache_events():
            tell[change]("r@1", joined(blocks))
    assert 0 < lowered[2] < 5, "a part of it was on the device"
    assert lowered[6:] == [5, 0]


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"pipeline": 2}, {"sequence": 2}], ids=str)
@pytest.mark.parametrize("dtype", ["auto", "int8"])
def test_every_rank_moves_its_part(folder: Path, parallel: dict[str, int], dtype: str) -> None:
    """Of the same number of blocks on each rank, or of half as many where these are divided."""
    least = {"tensor": 8, "pipeline": 8, "sequence": 4}

    def body(engine: Engine) -> list[Answer]:
        found = in_turn(engine)
        assert engine.stats.tiers.blocks_loaded > 0
        return found

    ((kind, _),) = parallel.items()
    changes: dict[str, Any] = {"kv_cache_dtype": dtype}
    limits = engine_settings(folder, least[kind], **changes)
    share = 1 if kind == "sequence" else 2
    size = limits.kv_cache_bytes or 0
    limits = limits.model_copy(update={"kv_cache_bytes": size // share})
    limits = EngineSettings.model_validate(limits.model_dump() | {"parallel": parallel})
    check_in_turn(with_ranks(folder, limits, body), folder, **changes)


def test_ranks_that_are_processes(folder: Path, tmp_path: Path) -> None:
    limits = engine_settings(folder, 4, parallel={"tensor": 2})
    ranks = ForkedRanks(tmp_path)
    engine = start_engine(folder, limits, lambda: ranks)
    try:
        check_in_turn(in_turn(engine), folder)
        assert engine.stats.tiers.blocks_loaded > 0
    finally:
        engine.close()


@settings(max_examples=10, deadline=None)
@given(
    wishes=st.lists(WISHES, min_size=2, max_size=14),
    num_blocks=st.integers(12, 24),
    num_slots=st.integers(1, 40),
    budget=st.sampled_from([1, 5, 16, 64]),
    dtype=st.sampled_from(["auto", "int8"]),
)
def test_every_request_gets_what_it_gets_alone(
    folder: Path, wishes: list[Wish], num_blocks: int, num_slots: int, budget: int, dtype: str
) -> None:
    """Preempted, forked, cancelled, in caches so small that all blocks come and go."""
    limits = engine_settings(
        folder, num_blocks, kv_cache_dtype=dtype, max_num_seqs=6, max_num_batched_tokens=budget
    )
    size = (limits.kv_cache_bytes or 0) // num_blocks
    engine = Engine(folder, limits.model_copy(update={"host_cache_bytes": num_slots * size}))
    outputs = run(engine, wishes)
    engine.check_integrity()
    alone = Engine(folder, engine_settings(folder, 200, kv_cache_dtype=dtype, host_cache_bytes=0))
    for number, wish in enumerate(wishes):
        found = samples(outputs, number)
        expected = samples(run(alone, [replace(wish, arrives=0, cancelled_after=None)]), 0)
        for index, (tokens, end) in found.items():
            assert tokens == expected[index][0][: len(tokens)]
            assert wish.cancelled_after is not None or (tokens, end) == expected[index]


class Cluster(NamedTuple):
    """A Redis for blocks."""

    url: str
    client: Redis

    def settings(self, folder: Path, num_blocks: int = 99, **changes: Any) -> EngineSettings:
        redis_cache = {"url": self.url} | changes.pop("redis_cache", {})
        return engine_settings(folder, num_blocks, redis_cache=redis_cache, **changes)

    def engine(self, folder: Path, num_blocks: int = 99, **changes: Any) -> Engine:
        engine = Engine(folder, self.settings(folder, num_blocks, **changes))
        # So small a model may compute quicker than Redis reads; then it would.
        assert engine._redis is not None
        engine._redis._prefill_tokens_per_s = lambda: 0.0
        return engine

    def warm(self, folder: Path, **changes: Any) -> Engine:
        """An engine that has come and gone, and left what was asked for twice."""
        engine = self.engine(folder, **changes)
        for prompt in PROMPTS[:2]:
            ask(engine, prompt)
            ask(engine, prompt)
        engine.close()
        return engine


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running_redis(tmp_path) as (server, client):
        yield Cluster(server.url, client)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    alone = Engine(folder, engine_settings(folder, 99, host_cache_bytes=0))
    return [ask(alone, prompt)[0].token_ids for prompt in PROMPTS]


@pytest.mark.parametrize("dtype", ["auto", "int8"])
async def test_a_new_engine_serves_what_another_has_computed(
    folder: Path, cluster: Cluster, dtype: str
) -> None:
    """The hot prompts, and a conversation that goes on from one."""
    first = cluster.warm(folder, kv_cache_dtype=dtype)
    assert first.stats.tiers.blocks_written == 10
    assert await cluster.client.dbsize() == 10
    engine = cluster.engine(folder, kv_cache_dtype=dtype)
    longer = [*PROMPTS[1], 9, 10, 11]
    found = ask(engine, PROMPTS[0], PROMPTS[2], longer)
    assert [a.cached for a in found] == [40, 0, 40]
    tiers = engine.stats.tiers
    assert (tiers.redis_hit_tokens, tiers.host_hit_tokens, tiers.blocks_fetched) == (80, 0, 10)
    alone = Engine(folder, engine_settings(folder, 99, host_cache_bytes=0, kv_cache_dtype=dtype))
    assert [a.token_ids for a in found] == [
        ask(alone, prompt)[0].token_ids for prompt in (PROMPTS[0], PROMPTS[2], longer)
    ]
    engine.close()
    assert tiers.blocks_written == 0, "it wrote back what it had read"


@pytest.mark.parametrize(
    "parallel",
    [{"tensor": 2}, {"pipeline": 2}, {"sequence": 2}, {"tensor": 2, "sequence": 2}],
    ids=str,
)
async def test_every_rank_reads_and_writes_its_part(
    folder: Path, cluster: Cluster, expected: list[list[int]], parallel: dict[str, int]
) -> None:
    """And none without the others: what one of them has not found is computed by all."""
    limits = cluster.settings(folder, parallel=parallel)

    def warm(engine: Engine) -> int:
        for prompt in [*PROMPTS[:2], *PROMPTS[:2]]:
            ask(engine, prompt)
        engine.close()
        return engine.stats.tiers.blocks_written

    def find(engine: Engine) -> list[Answer]:
        assert engine._redis is not None
        engine._redis._prefill_tokens_per_s = lambda: 0.0
        found = ask(engine, *PROMPTS[:3])
        assert engine.stats.tiers.redis_hit_tokens == sum(answer.cached for answer in found)
        engine.close()
        return found

    assert await asyncio.to_thread(with_ranks, folder, limits, warm) == 10
    num_parts = await cluster.client.dbsize()
    assert num_parts == 10 * parallel.get("tensor", 1) * parallel.get("pipeline", 1)
    found = await asyncio.to_thread(with_ranks, folder, limits, find)
    assert found == [
        Answer(tokens, cached) for tokens, cached in zip(expected, (40, 40, 0), strict=False)
    ]
    keys = await cluster.client.keys()
    await cluster.client.delete(keys[0])
    found = await asyncio.to_thread(with_ranks, folder, limits, find)
    assert [answer.token_ids for answer in found] == expected[:3]
    assert sorted([found[0].cached, found[1].cached])[1] == 40
    assert found[0].cached + found[1].cached < 80


async def test_processes_read_and_write_their_parts(
    folder: Path, cluster: Cluster, expected: list[list[int]], tmp_path: Path
) -> None:
    limits = cluster.settings(folder, parallel={"tensor": 2})
    for cached in 0, 40:
        engine = start_engine(folder, limits, lambda: ForkedRanks(tmp_path))
        try:
            assert ask(engine, PROMPTS[0]) == [Answer(expected[0], cached)]
            assert ask(engine, PROMPTS[0]) == [Answer(expected[0], 40)]
        finally:
            engine.close()
        assert engine.stats.tiers.blocks_written == (0 if cached else 5)


async def test_blocks_that_are_evicted_are_written(folder: Path, cluster: Cluster) -> None:
    engine = cluster.engine(folder, 8)
    for prompt in PROMPTS:
        ask(engine, prompt)
    engine.close()
    assert engine.stats.tiers.blocks_written > 5
    assert ask(cluster.engine(folder), PROMPTS[0])[0].cached == 40


async def test_requests_for_the_same_prefix_wait_for_one_fetch(
    folder: Path, cluster: Cluster, expected: list[list[int]]
) -> None:
    cluster.warm(folder)
    engine = cluster.engine(folder)
    found = ask(engine, *[PROMPTS[0]] * 3)
    assert found == [Answer(expected[0], 40)] * 3
    assert engine.stats.tiers.fetches == 1
    engine.close()


async def test_other_bytes_under_the_same_hash_are_not_found(
    folder: Path, cluster: Cluster
) -> None:
    """Blocks of another size have other hashes already."""
    cluster.warm(folder)
    others: list[dict[str, Any]] = [
        {"kv_cache_dtype": "int8"},
        {"dtype": "bfloat16"},
        {"quantization": "int8"},
    ]
    for changes in others:
        engine = cluster.engine(folder, **changes)
        assert ask(engine, PROMPTS[0])[0].cached == 0
        assert engine.stats.tiers.fetches == 1
        engine.close()


@pytest.mark.parametrize("damage", ["flipped", "cut short", "another's", "empty"])
async def test_a_value_that_is_wrong_is_never_used(
    folder: Path, cluster: Cluster, expected: list[list[int]], damage: str
) -> None:
    """The blocks before it are, and it is written anew."""
    cluster.warm(folder)
    engine = cluster.engine(folder)
    assert engine._redis is not None
    sequence = _hashes(engine, PROMPTS[0])
    key, other = (engine._redis._part.store.key(sequence[i]) for i in (2, 1))
    value, another = await _get(cluster, key), await _get(cluster, other)
    wrong = {
        "flipped": value[:-9] + bytes([value[-9] ^ 1]) + value[-8:],
        "cut short": value[:-1],
        "another's": another,
        "empty": b"",
    }
    await cluster.client.set(key, wrong[damage])
    assert ask(engine, PROMPTS[0]) == [Answer(expected[0], 16)]
    assert engine.stats.tiers.values_corrupt == 1
    assert not await cluster.client.exists(key)
    ask(engine, PROMPTS[0])
    engine.close()
    assert len(await _get(cluster, key)) == len(value)
    assert ask(cluster.engine(folder), PROMPTS[0]) == [Answer(expected[0], 40)]


async def _get(cluster: Cluster, key: bytes) -> bytes:
    value = await cluster.client.get(key)
    assert isinstance(value, bytes)
    return value


def _hashes(engine: Engine, prompt: list[int]) -> list[bytes]:
    engine.add(Request("hashes", prompt, replace(GREEDY, prompt_top_logprobs=0)))
    (sequence,) = engine._groups["hashes"].live
    hashes = engine.blocks.usable_hashes(sequence)
    engine.cancel("hashes")
    return hashes


async def test_redis_that_is_paused_stalls_nobody_else(
    folder: Path, cluster: Cluster, expected: list[list[int]]
) -> None:
    cluster.warm(folder)
    engine = cluster.engine(folder)
    process = (await cluster.client.info("server"))["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        engine.add(Request("waits", PROMPTS[0], GREEDY))
        engine.add(Request("leaves", PROMPTS[1], GREEDY))
        engine.add(Request("short", [4], replace(GREEDY, max_tokens=1)))
        assert engine.load().waiting_requests == 3
        (output,) = engine.step()
        assert output.request_id == "short"
        assert output.request_done
        assert engine.load().waiting_requests == 2
        engine.cancel("leaves")
        outputs = []
        while engine.has_work:
            outputs += engine.step()
        assert {output.request_id for output in outputs} == {"waits"}
        assert [token for output in outputs for token in output.token_ids] == expected[0]
        tiers = engine.stats.tiers
        assert tiers.fetches_failed + tiers.fetches_timed_out > 0
        # Nothing is asked of it for a while.
        assert ask(engine, PROMPTS[1]) == [Answer(expected[1], 0)]
        assert tiers.fetches == 2
    finally:
        os.kill(process, signal.SIGCONT)
    engine.close()


async def test_redis_that_is_killed_while_blocks_are_read(
    folder: Path, cluster: Cluster, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come before is used; all slots are free again."""
    cluster.warm(folder)
    engine = cluster.engine(folder)
    assert engine._redis is not None
    assert engine._host is not None
    process = (await cluster.client.info("server"))["process_id"]
    store, num_gets = engine._redis._part.store, count()
    get = store.get

    def get_or_kill(hashes: Sequence[bytes]) -> list[bytes | None]:
        if next(num_gets) == 1:
            os.kill(process, signal.SIGKILL)
        return get(hashes)

    monkeypatch.setattr(store, "get", get_or_kill)
    monkeypatch.setattr(engine._redis._fetcher, "_part", 2)
    assert ask(engine, PROMPTS[0]) == [Answer(expected[0], 16)]
    tiers = engine.stats.tiers
    assert (tiers.fetches_failed, tiers.blocks_fetched, tiers.redis_hit_tokens) == (1, 2, 16)
    engine.close()
    engine.clear_prefix_cache()
    assert len(engine._host._pool.reserve(2**20)) == engine._host.num_slots


async def test_redis_that_is_gone_costs_nothing_but_computing(
    folder: Path, tmp_path: Path, expected: list[list[int]]
) -> None:
    async with running_redis(tmp_path) as (server, client):
        cluster = Cluster(server.url, client)
        cluster.warm(folder)
        engine = cluster.engine(folder)
        assert ask(engine, PROMPTS[0]) == [Answer(expected[0], 40)]
        writes = cluster.engine(folder)
        ask(writes, PROMPTS[2])
    assert ask(engine, PROMPTS[1]) == [Answer(expected[1], 0)]
    assert engine.stats.tiers.fetches_failed == 1
    assert ask(writes, PROMPTS[2]) == [Answer(expected[2], 40)]
    writes.close()
    tiers = writes.stats.tiers
    assert tiers.blocks_written == 0
    assert tiers.writes_failed + tiers.writes_dropped > 0
    engine.close()


async def test_what_is_quicker_to_compute_is_not_fetched(
    folder: Path, cluster: Cluster, expected: list[list[int]]
) -> None:
    """Once both rates are known."""
    cluster.warm(folder)
    engine = cluster.engine(folder)
    assert engine._redis is not None
    assert ask(engine, PROMPTS[0]) == [Answer(expected[0], 40)]
    engine._redis._prefill_tokens_per_s = lambda: 1e12
    assert ask(engine, PROMPTS[1]) == [Answer(expected[1], 0)]
    assert engine.stats.tiers.fetches == 1
    engine.close()


async def test_nothing_is_written_beyond_the_budget(folder: Path, cluster: Cluster) -> None:
    engine = cluster.warm(folder, redis_cache={"max_bytes": 1})
    assert engine.stats.tiers.blocks_written == 0
    assert engine.stats.tiers.writes_failed == 10
    assert await cluster.client.dbsize() == 0
    # The same from a server that is full and throws nothing away.
    await cluster.client.config_set("maxmemory", 1)
    assert cluster.warm(folder).stats.tiers.writes_failed == 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host_cache_bytes": 0}, "needs host_cache_bytes"),
        ({"enable_prefix_caching": False}, "enable_prefix_caching is off"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    fields = {"host_cache_bytes": 2**20, "redis_cache": {"url": "redis://x"}} | changes
    with pytest.raises(ValidationError, match=says):
        EngineSettings.model_validate(fields)


def test_the_clusters_redis_is_not_for_blocks() -> None:
    engine = {"host_cache_bytes": 2**20, "redis_cache": {"url": "redis://x"}}
    with pytest.raises(ValidationError, match=r"is that of redis\.url"):
        Settings.model_validate({"redis": {"url": "redis://x"}, "engine": engine})


def test_a_host_cache_that_holds_no_block_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"engine\.host_cache_bytes"):
        Engine(folder, engine_settings(folder, 8, host_cache_bytes=10))
