"""What a replica needs of an engine."""

from typing import Protocol

from cluster.model_card import ModelCard
from cluster.prefix.events import CacheEvent
from workers.engine.load import Load
from workers.engine.request import Request, SampleOutput
from workers.engine.tier_stats import TierStats


class StepStats(Protocol):
    """Counters that only grow."""

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed."""

    @property
    def decode_tokens(self) -> int:
        """Tokens sampled."""

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of the requests taken up."""

    @property
    def hit_tokens(self) -> int:
        """Prompt tokens found in the prefix cache."""

    @property
    def tiers(self) -> TierStats:
        """What the tiers below the device's cache have done."""

    @property
    def preemptions(self) -> int:
        """Times a sequence lost its blocks to another one."""

    @property
    def failed_samples(self) -> int:
        """Samples that ended with an error while others went on."""

    @property
    def expert_rows(self) -> dict[int, list[int]]:
        """Rows routed to each expert, by layer, of the leader's layers that have any."""


class StepEngine(Protocol):
    """`workers.engine.engine.Engine`, or what stands in for it.

    One thread makes all calls, but for those of which this says otherwise.
    """

    @property
    def stats(self) -> StepStats:
        """What it has done so far."""

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""

    def card(self, name: str) -> ModelCard:
        """What routers have to know about the model, under the name it is served by."""

    def add(self, request: Request) -> None:
        """Take a request. Raises RequestError (INVALID_ARGUMENT, QUEUE_FULL)."""

    def cancel(self, request_id: str) -> None:
        """Forget a request; nothing more is said of it."""

    def step(self) -> list[SampleOutput]:
        """Compute one step."""

    def rest(self) -> bool:
        """Use a moment without work, briefly; whether to call it again soon."""

    def listen_to_cache(self) -> None:
        """Have `take_cache_events` tell what changes from now on."""

    def take_cache_events(self) -> list[CacheEvent]:
        """What prefixes became cached and what ceased to be, since the last time, in order."""

    def load(self) -> Load:
        """How busy it is."""

    def check_integrity(self) -> None:
        """Raise AssertionError if its books do not balance."""

    def check(self) -> None:
        """Raise an exception if it can compute no more, also between steps. On any thread."""

    def dump_stacks(self) -> None:
        """Write to the logs what the threads of all its processes are doing. On any thread."""

    def close(self) -> None:
        """Let go of other processes that belong to it; nothing else is called afterwards."""
