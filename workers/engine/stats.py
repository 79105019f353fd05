"""What an engine has done since it started."""

from dataclasses import dataclass, field

from workers.engine.stopwatch import Stopwatch
from workers.engine.tier_stats import TierStats
from workers.layers.expert_load import ExpertLoad


@dataclass(slots=True)
class Stats:
    """Counters that only grow."""

    steps: int = 0
    prefill_tokens: int = 0
    """Tokens computed beyond one per sequence and step: prompts, and recomputation."""
    decode_tokens: int = 0
    """Tokens sampled."""
    prompt_tokens: int = 0
    """Prompt tokens of the requests that were taken up."""
    hit_tokens: int = 0
    """Those of them that were found in the prefix cache, in whichever tier."""
    tiers: TierStats = field(default_factory=TierStats)
    """Of the tiers below the device's cache."""
    preemptions: int = 0
    failed_samples: int = 0
    """Samples that ended with an error while others went on."""
    layers: range = range(0)
    """Those of the leader, of which experts' load is known."""
    expert_load: ExpertLoad | None = None
    watch: Stopwatch = field(default_factory=Stopwatch)
    """Seconds by part of a step: schedule, build, forward, sample, commit."""

    @property
    def expert_rows(self) -> dict[int, list[int]]:
        """Rows routed to each expert so far, by layer; of layers that have any."""
        if self.expert_load is None:
            return {}
        counts: list[list[int]] = self.expert_load.rows.tolist()
        return {layer: rows for layer, rows in zip(self.layers, counts, strict=True) if any(rows)}
