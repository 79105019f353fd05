"""What a hot prefix costs a request: computed again, from host memory, and from Redis."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter, sleep
from typing import Any, NamedTuple

from redis import Redis

from cluster.redis_server import RedisServer
from cluster.settings import EngineSettings
from ops.bench.hardware import measure
from ops.bench.limits import sizes
from ops.bench.report import Row
from ops.models.random_model import write_random_model
from ops.models.shapes import NAMED
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

_BLOCK = 16
_OWN_TOKENS = 16
"""Of each request, behind the prefix."""
_WARM_UP_TOKENS = 64
_WRITE_S = 60.0
"""For blocks to reach Redis."""
_READS = 3
_GOAL = 0.5
"""Of the time that computing takes."""


class PrefixWork(NamedTuple):
    """A request with a prefix that others have asked for before."""

    model: str
    prefix_tokens: int

    def prompt(self, seed: int) -> list[int]:
        """Random token ids, other ones for each seed."""
        length = self.prefix_tokens + _OWN_TOKENS
        return Random(seed).choices(range(NAMED[self.model].vocab_size), k=length)

    @property
    def num_blocks(self) -> int:
        """Of the prefix."""
        return self.prefix_tokens // _BLOCK

    def __str__(self) -> str:
        return f"{self.prefix_tokens} hot tokens + {_OWN_TOKENS}"


class _Place(NamedTuple):
    """Where a bench runs."""

    folder: Path
    redis_url: str
    block_bytes: int


def bench_tiers(model: str, prefix_tokens: int, runs: int) -> list[Row]:
    """Milliseconds until the first token, and as a share of computing the prefix again.

    In each run a prefix that is new, in turn: computed, back in a cache that another prompt has
    pushed it out of, and with an engine that has just started and finds it in Redis. Limits are the
    prefix's bytes at the rate at which memory, or a client of that Redis, is read.

    Raises ValueError for a name of no shape, and a prefix that is no whole number of blocks.
    """
    if model not in NAMED:
        raise ValueError(f"model: got {model}, expected one of {', '.join(NAMED)}")
    if prefix_tokens % _BLOCK:
        raise ValueError(f"prefix: got {prefix_tokens} tokens, expected a multiple of {_BLOCK}")
    work = PrefixWork(model, prefix_tokens)
    with TemporaryDirectory(prefix="tiers-") as scratch:
        folder = Path(scratch) / model
        folder.mkdir()
        write_random_model(NAMED[model], folder)
        block_bytes = _BLOCK * sizes(folder, 2, 2).kv_token * 2
        return asyncio.run(_with_redis(work, _Place(folder, "", block_bytes), runs))


async def _with_redis(work: PrefixWork, place: _Place, runs: int) -> list[Row]:
    server = RedisServer(place.folder.parent)
    await server.start()
    try:
        place = place._replace(redis_url=server.url)
        return await asyncio.to_thread(_measure, work, place, runs)
    finally:
        await server.stop()


def _measure(work: PrefixWork, place: _Place, runs: int) -> list[Row]:
    ways: dict[str, Callable[[list[int]], float]] = {}
    with ExitStack() as opened, Redis.from_url(place.redis_url) as redis:
        ways["computed"] = opened.enter_context(_computing(place))
        ways["host memory"] = opened.enter_context(_from_host(work, place))
        ways["redis"] = opened.enter_context(_from_redis(work, place, redis))
        values: dict[str, list[float]] = {way: [] for way in ways}
        for run in range(-1, runs):
            for way, seconds in ways.items():
                taken = seconds(work.prompt(runs + run))
                if run >= 0:  # the first is a warm-up
                    values[way].append(taken)
        read_s = _redis_read_seconds(redis, work.num_blocks)
    num_bytes = work.num_blocks * place.block_bytes
    limits = {"host memory": num_bytes / measure().read_bytes_per_s, "redis": read_s}
    return _rows(work, values, limits)


def _rows(work: PrefixWork, values: dict[str, list[float]], limits: dict[str, float]) -> list[Row]:
    common: dict[str, Any] = {"bench": "tiers", "work": str(work), "model": work.model}
    rows = []
    for way, seconds in values.items():
        limit = limits.get(way)
        rows.append(
            Row.over(
                [1e3 * s for s in seconds],
                metric="first token",
                unit="ms",
                engine=way,
                limit=None if limit is None else 1e3 * limit,
                **common,
            )
        )
        if limit is None:
            continue
        shares = [s / whole for s, whole in zip(seconds, values["computed"], strict=True)]
        rows.append(
            Row.over(
                shares,
                metric=f"of computing it (goal {_GOAL:g})",
                unit="x",
                engine=way,
                limit=limit / min(values["computed"]),
                **common,
            )
        )
    return rows


@contextmanager
def _computing(place: _Place) -> Iterator[Callable[[list[int]], float]]:
    with _llm(place) as llm:
        yield lambda prompt: _first_token_seconds(llm, prompt, 0)


@contextmanager
def _from_host(work: PrefixWork, place: _Place) -> Iterator[Callable[[list[int]], float]]:
    """In a cache with room for one such request, so that the next one pushes it out."""
    small = place.block_bytes * (work.num_blocks + -(-_OWN_TOKENS // _BLOCK) + 1)
    with _llm(place, kv_cache_bytes=small) as llm:

        def seconds(prompt: list[int]) -> float:
            _first_token_seconds(llm, prompt, 0)
            _first_token_seconds(llm, prompt[::-1], 0)
            return _first_token_seconds(llm, prompt, work.prefix_tokens)

        yield seconds


@contextmanager
def _from_redis(
    work: PrefixWork, place: _Place, redis: Redis
) -> Iterator[Callable[[list[int]], float]]:
    """One engine computes and writes; for each prefix a new one reads."""
    cache = {"url": place.redis_url}
    with _llm(place, redis_cache=cache) as first:

        def seconds(prompt: list[int]) -> float:
            expected = int(redis.dbsize()) + work.num_blocks
            for _ in range(2):
                _generate(first, prompt)
            _wait_for_blocks(redis, expected)
            with _llm(place, redis_cache=cache) as new:
                return _first_token_seconds(new, prompt, work.prefix_tokens)

        yield seconds


def _llm(place: _Place, **changes: object) -> LLM:
    """Ready, but with an empty cache: it has had a short prompt, unlike any other."""
    fields = {"kv_cache_bytes": 2**29, "host_cache_bytes": 2**29, "block_size": _BLOCK}
    llm = LLM(place.folder, EngineSettings.model_validate(fields | changes))
    _generate(llm, [1] * _WARM_UP_TOKENS)
    return llm


def _generate(llm: LLM, prompt: list[int]) -> int:
    """Prompt tokens that did not have to be computed for the first token."""
    (completion,) = llm.generate([prompt], SamplingParams(max_tokens=1, ignore_eos=True))
    return completion.cached_prompt_tokens


def _first_token_seconds(llm: LLM, prompt: list[int], expected: int) -> float:
    """Raises RuntimeError if other than the expected tokens were found in the cache."""
    start = perf_counter()
    found = _generate(llm, prompt)
    seconds = perf_counter() - start
    if found != expected:
        raise RuntimeError(f"{found} tokens were found in the cache, not {expected}")
    return seconds


def _wait_for_blocks(redis: Redis, expected: int) -> None:
    """Raises TimeoutError if so many do not come to be there."""
    deadline = monotonic() + _WRITE_S
    while int(redis.dbsize()) < expected:
        if monotonic() > deadline:
            raise TimeoutError(f"{expected} blocks were not written within {_WRITE_S:g} s")
        sleep(0.02)


def _redis_read_seconds(redis: Redis, num_blocks: int) -> float:
    """What a client takes to read so many blocks and do nothing with them; the best of 3."""
    keys = list(redis.scan_iter(count=1000))[:num_blocks]
    times = []
    for _ in range(_READS):
        start = perf_counter()
        for key in keys:
            redis.get(key)
        times.append(perf_counter() - start)
    return min(times)
