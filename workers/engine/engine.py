"""The engine: requests in, one step at a time, tokens out."""

import heapq
from collections.abc import Callable
from pathlib import Path
from time import monotonic, perf_counter

from cluster.errors import Reason, RequestError, invalid
from cluster.model_card import ModelCard
from cluster.prefix.block_hash import root_hash
from cluster.prefix.events import CacheEvent
from cluster.settings import EngineSettings
from workers.engine.batch import Batch
from workers.engine.block_pool import BlockPool
from workers.engine.bookkeeper import Bookkeeper
from workers.engine.cache_size import cache_dtype, cache_size
from workers.engine.card import model_card
from workers.engine.gang_protocol import Gang, SoloGang
from workers.engine.host_tier import HostTier
from workers.engine.in_flight import InFlight
from workers.engine.intake import Intake
from workers.engine.kv_blocks import KVBlocks
from workers.engine.load import Load
from workers.engine.model_runner import ModelRunner, StepResult
from workers.engine.rank_runner import RankRunner
from workers.engine.rates import Rates
from workers.engine.redis_part import RedisPart, redis_part
from workers.engine.redis_tier import RedisTier
from workers.engine.request import FinishReason, Request, SampleOutput
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import RequestGroup
from workers.engine.served_model import served_model
from workers.engine.stats import Stats
from workers.layers.kv_cache import KVCache
from workers.models.causal_lm import CausalLM
from workers.parallel.group import RankLostError


class Engine:
    """Serves one model, as the leader of the ranks that it is divided among. Not thread-safe: one
    thread makes all calls.

    Raises what `load_model` raises if the model cannot be served, and ValueError if the KV cache
    has no room for a single block. Whoever makes an engine of several ranks closes it.
    """

    def __init__(
        self,
        model_dir: Path,
        settings: EngineSettings,
        progress: Callable[[int, int], None] | None = None,
        gang: Gang | None = None,
    ) -> None:
        """Without a `gang`, this is the only rank."""
        self._settings = settings
        self._gang = gang or SoloGang()
        ranks = self._gang.ranks
        self.model = served_model(model_dir, settings, progress, ranks)
        config, block_size = self.model.config, settings.block_size
        self.max_model_len = min(
            settings.max_model_len or config.max_sequence_len, config.max_sequence_len
        )
        self.stats = Stats(layers=self.model.shape.layers, expert_load=self.model.expert_load)
        self._rates = Rates()
        size = self._gang.agree(cache_size(self.model, settings, self.max_model_len))
        num_slots = size.num_slots * ranks.layout.sequence
        self._host = HostTier(num_slots, self.stats.tiers) if num_slots else None
        self.blocks = KVBlocks(
            BlockPool(size.num_blocks * ranks.layout.sequence),
            block_size,
            share_prefixes=settings.enable_prefix_caching,
            window=_common_window(self.model),
            host=self._host,
        )
        cache = KVCache.allocate(
            self.model.shape,
            size.num_blocks,
            block_size,
            cache_dtype(self.model, settings),
            self.model.device,
        )
        rank = RankRunner(
            self.model,
            cache,
            ranks,
            block_size=block_size,
            max_num_tokens=settings.max_num_batched_tokens,
            num_slots=size.num_slots,
        )
        self._runner = ModelRunner(
            rank, self._gang.send, block_size=block_size, watch=self.stats.watch
        )
        self._slots = rank.host
        self._redis = self._redis_tier(redis_part(self.model, settings, ranks, rank.host))
        self._scheduler = Scheduler(
            self.blocks,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            num_in_flight=ranks.layout.pipeline,
            fetches=self._redis,
            rates=self._rates,
        )
        self._in_flight = InFlight(
            self._scheduler, self._runner, self.stats.watch, ranks.layout.pipeline
        )
        self._keeper = Bookkeeper(self._scheduler, self.stats, config.eos_token_ids)
        self._intake = Intake(self.blocks, config, settings, self.max_model_len)
        self._card = model_card(model_dir, config, settings, self.max_model_len)
        self._groups: dict[str, RequestGroup] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._num_arrived = 0

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._groups or self._in_flight)

    def card(self, name: str) -> ModelCard:
        """What routers have to know about the model, under the name it is served by."""
        return self._card.model_copy(update={"name": name})

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestError (INVALID_ARGUMENT, QUEUE_FULL)."""
        if request.request_id in self._groups:
            raise invalid("request_id", request.request_id, "an id that is not in use")
        if self._scheduler.num_waiting >= self._settings.max_waiting_requests:
            raise RequestError(Reason.QUEUE_FULL, "the engine's queue is full", retry_after_s=1.0)
        group = RequestGroup(
            request=request,
            arrival=self._num_arrived,
            arrived_at=monotonic(),
            max_output=self._intake.max_output(request),
            root_hash=root_hash(
                self._card.fingerprint, self._settings.block_size, salt=request.cache_salt
            ),
            is_forked=request.params.n == 1,
        )
        self._num_arrived += 1
        self._groups[request.request_id] = group
        if request.deadline is not None:
            self._note_deadline(request.deadline, request.request_id)
        self._scheduler.add(group)

    def cancel(self, request_id: str) -> None:
        """Forget a request and free its blocks; no output will name it. Unknown ids are fine."""
        group = self._groups.pop(request_id, None)
        if group is not None:
            for sequence in list(group.live):
                self._scheduler.remove(sequence)

    def step(self) -> list[SampleOutput]:
        """Compute one step, the oldest in flight; what has become of the requests in it.

        Raises RankLostError if ranks are lost, and is of no use any more then.
        """
        watch = self.stats.watch
        watch.start()
        began = perf_counter()
        self._gang.check()
        outputs = self._expire()
        try:
            self._in_flight.submit()
            done = self._in_flight.collect() if self._in_flight else None
            if done is None and self._redis is not None and self._scheduler.num_fetching:
                self._redis.wait(_FETCH_WAIT_S)
        except RankLostError:
            raise
        except BaseException as error:
            # Other ranks go on with what they were sent, which this one may not have done.
            self._gang.fail(f"a step was broken off: {error!r}")
            raise
        if done is not None:
            batch, result = done
            if self._host is not None:
                self._host.carried_out(batch.saves, batch.loads)
            self._count(batch, result, perf_counter() - began)
            outputs += self._keeper.commit(batch, result)
        for output in outputs:
            if output.request_done:
                del self._groups[output.request_id]
        watch.lap("commit")
        return outputs

    def rest(self) -> bool:
        """Use a moment without work, briefly; whether to call it again soon.

        Ranks with spare room for experts share out the load better. Raises RankLostError.
        """
        return not self.has_work and self._runner.rest()

    def load(self) -> Load:
        """How busy the engine is."""
        pool = self.blocks.pool
        return Load(
            running_sequences=len(self._scheduler.running),
            waiting_requests=self._scheduler.num_waiting,
            queued_prefill_tokens=self._scheduler.queued_tokens,
            free_blocks=pool.num_available,
            total_blocks=pool.num_blocks,
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            decode_tokens_per_s=self._rates.decode_tokens_per_s,
            max_running_sequences=self._settings.max_num_seqs,
            fetch_tokens_per_s=self._fetch_rate(),
        )

    def check_integrity(self) -> None:
        """Compare the block pool's books with what sequences hold. Raises AssertionError."""
        tables = (s.block_table for group in self._groups.values() for s in group.live)
        self.blocks.pool.check_integrity(tables)
        if self._host is not None:
            self._host.check_integrity()

    def kernel_seconds(self) -> list[tuple[str, float]]:
        """The last step's kernels in order, and how long each takes when that step is done again.

        Empty where steps are not recorded. Only when idle: a step that is done again finds the same
        keys and values as long as nothing was computed after it.
        """
        return self._runner.kernel_seconds()

    def clear_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self.blocks.pool.clear_cache()
        if self._host is not None:
            self._host.clear()

    def listen_to_cache(self) -> None:
        """Have `take_cache_events` tell what changes from now on."""
        self.blocks.listen()

    def take_cache_events(self) -> list[CacheEvent]:
        """What prefixes became cached and what ceased to be, since the last time, in order."""
        return self.blocks.take_events()

    def check(self) -> None:
        """Raise RankLostError if ranks are lost, also between steps. On any thread."""
        self._gang.check()

    def dump_stacks(self) -> None:
        """Have all ranks write to their logs what their threads are doing. On any thread."""
        self._gang.dump_stacks()

    def close(self) -> None:
        """Let the other ranks end; the engine cannot be used any more."""
        if self._redis is not None:
            self._redis.close()
        self._gang.close()

    def _redis_tier(self, part: RedisPart | None) -> RedisTier | None:
        if part is None or self._host is None:
            return None
        return RedisTier(
            part,
            self._gang,
            self.blocks,
            self._host,
            self.stats.tiers,
            lambda: self._rates.prefill_tokens_per_s,
        )

    def _fetch_rate(self) -> float:
        """Tokens per second that came from host memory; 0 as long as none have."""
        num_tokens = self.stats.tiers.blocks_loaded * self.blocks.block_size
        return num_tokens / self._slots.load_seconds if self._slots and num_tokens else 0.0

    def _note_deadline(self, deadline: float, request_id: str) -> None:
        """Remember a deadline, and forget those of requests that ended long before theirs."""
        heapq.heappush(self._deadlines, (deadline, request_id))
        if len(self._deadlines) > 2 * len(self._groups) + _DEADLINES_KEPT:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._groups]
            heapq.heapify(self._deadlines)

    def _expire(self) -> list[SampleOutput]:
        """End the requests whose deadline has passed."""
        outputs: list[SampleOutput] = []
        now = monotonic()
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id = heapq.heappop(self._deadlines)
            group = self._groups.get(request_id)
            if group is not None and group.request.deadline == deadline:
                for sequence in list(group.live):
                    outputs += self._keeper.cut_off(sequence, FinishReason.DEADLINE)
        return outputs

    def _count(self, batch: Batch, result: StepResult, seconds: float) -> None:
        """Count a step."""
        num_decode = sum(chunk.length == 1 and chunk.samples for chunk in batch.chunks)
        num_prefill = batch.num_tokens - num_decode
        self._rates.observe(num_prefill, num_decode, seconds)
        self.stats.steps += 1
        self.stats.prefill_tokens += num_prefill
        self.stats.decode_tokens += len(result.samples)
        self.stats.preemptions = self._scheduler.num_preemptions


_DEADLINES_KEPT = 1024
_FETCH_WAIT_S = 0.005
"""The longest that a new request may wait for, when all others wait for their prefixes."""


def _common_window(model: CausalLM) -> int | None:
    """The sliding window if every layer has one; the widest, if they differ."""
    windows = [window for window in model.config.windows if window is not None]
    return max(windows) if len(windows) == len(model.config.windows) else None
