"""What an engine has done since it started."""

from dataclasses import dataclass, field

from workers.engine.stopwatch import Stopwatch


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
    """Those of them that were found in the prefix cache."""
    preemptions: int = 0
    failed_samples: int = 0
    """Samples that ended with an error while others went on."""
    watch: Stopwatch = field(default_factory=Stopwatch)
    """Seconds by part of a step: schedule, build, forward, sample, commit."""
