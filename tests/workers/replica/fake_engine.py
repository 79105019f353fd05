"""An engine without a model: token i of a request is (first prompt token + i) modulo 1000."""

import threading
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import Reason, RequestError, invalid
from cluster.model_card import ModelCard
from cluster.prefix.events import CacheEvent, CacheEvents
from workers.engine.load import Load
from workers.engine.request import FinishReason, Request, SampleOutput
from workers.engine.tier_stats import TierStats

CARD = ModelCard(
    name="fake",
    fingerprint="0",
    max_model_len=1024,
    vocab_size=1000,
    block_size=16,
    eos_token_ids=(0,),
    tokenizer_json="{}",
)
POISON = 666
"""A prompt token at which a step raises."""


@dataclass
class FakeStats:
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    tiers: TierStats = field(default_factory=TierStats)
    preemptions: int = 0
    failed_samples: int = 0
    expert_rows: dict[int, list[int]] = field(default_factory=dict)


@dataclass
class Running:
    request: Request
    num_output: int = 0


@dataclass
class FakeEngine:
    """A step, once `entered`, waits until `gate` is open, so that tests decide when it ends."""

    max_waiting: int = 100
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    stats: FakeStats = field(default_factory=FakeStats)
    cancelled: list[str] = field(default_factory=list)
    running: dict[str, Running] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    loss: Exception | None = None
    """What `check` raises."""
    num_dumps: int = 0
    num_rests: int = 0
    """Times that `rest` has something to do."""
    rested: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    cache: CacheEvents = field(default_factory=CacheEvents)
    """What the next turn tells of the cache."""
    is_listened_to: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def card(self, name: str) -> ModelCard:
        return CARD.model_copy(update={"name": name})

    def add(self, request: Request) -> None:
        self.threads.add(threading.get_ident())
        if not request.prompt_token_ids:
            raise invalid("prompt", "0 tokens", "at least one token")
        if len(self.running) >= self.max_waiting:
            raise RequestError(Reason.QUEUE_FULL, "full")
        self.running[request.request_id] = Running(request, request.num_generated)

    def cancel(self, request_id: str) -> None:
        if self.running.pop(request_id, None):
            self.cancelled.append(request_id)

    def step(self) -> list[SampleOutput]:
        self.entered.set()
        self.gate.wait()
        self.threads.add(threading.get_ident())
        return [output for r in list(self.running.values()) for output in self._advance(r)]

    def listen_to_cache(self) -> None:
        self.is_listened_to = True

    def take_cache_events(self) -> list[CacheEvent]:
        assert self.is_listened_to
        return self.cache.take()

    def load(self) -> Load:
        return Load(len(self.running), 0, 0, 100 - len(self.running), 100, 0.0, 0.0, 100)

    def rest(self) -> bool:
        self.num_rests -= 1
        if self.num_rests == 0:
            self.rested.set()
        return self.num_rests > 0

    def check_integrity(self) -> None:
        assert not self.running

    def check(self) -> None:
        if self.loss is not None:
            raise self.loss

    def dump_stacks(self) -> None:
        self.num_dumps += 1

    def close(self) -> None:
        self.closed.set()

    def _advance(self, running: Running) -> list[SampleOutput]:
        request = running.request
        first = request.prompt_token_ids[0]
        if first == POISON:
            raise RuntimeError("poisoned")
        if request.embed:
            del self.running[request.request_id]
            return [_embedded(request)]
        running.num_output += 1
        self.stats.decode_tokens += request.params.n
        done = running.num_output >= (request.params.max_tokens or 16)
        if done:
            del self.running[request.request_id]
        return [
            SampleOutput(
                request.request_id,
                index,
                [(first + running.num_output) % 1000],
                running.num_output - 1,
                finish_reason=FinishReason.LENGTH if done else None,
                request_done=done and index == request.sample_indices[-1],
            )
            for index in request.sample_indices
        ]


def _embedded(request: Request) -> SampleOutput:
    """The only output of a request to embed: its tokens, as they are."""
    return SampleOutput(
        request.request_id,
        0,
        [],
        embedding=np.array(request.prompt_token_ids, dtype=np.float32),
        finish_reason=FinishReason.STOP,
        request_done=True,
    )
