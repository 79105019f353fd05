"""What a replica finds and may use of the machine that it runs on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.node_host import node_host
from cluster.settings import Settings
from workers.engine.cpus import usable_cpus
from workers.parallel.layout import ParallelLayout


def layout_of(settings: Settings) -> ParallelLayout:
    """How each replica is divided."""
    return ParallelLayout(**settings.engine.parallel.model_dump())


def with_shares(settings: Settings, others: Sequence[Settings] = ()) -> Settings:
    """On a lone machine, its cores and memory divided among the ranks of all replicas, unless said
    otherwise. `others` are the settings of the other models.

    To be called where replicas are deployed. In a cluster of several machines these may differ, and
    the settings stay as they are until `with_shares_here`.
    """
    if settings.spans_machines:
        return settings
    num_ranks = _num_ranks(settings) + sum(map(_num_ranks, others))
    return _shared(
        settings,
        num_threads=usable_cpus() // num_ranks,
        # Half of what is free; an update may start one more before it stops the first.
        memory_share=0.5 / (num_ranks + layout_of(settings).world_size),
    )


def _num_ranks(settings: Settings) -> int:
    return max(1, settings.replica.count) * layout_of(settings).world_size


def with_shares_here(settings: Settings) -> Settings:
    """With the cores that each rank reserves, and that part of half the memory of this machine,
    unless said otherwise.
    """
    if not settings.spans_machines:
        return settings
    cores = min(settings.replica.num_cpus, usable_cpus())
    return _shared(settings, num_threads=int(cores), memory_share=0.5 * cores / usable_cpus())


def check_model(settings: Settings) -> None:
    """Raise FileNotFoundError, which names the machine, if the model is not on it."""
    if not Path(settings.model, "config.json").is_file():
        where = f" on {node_host(settings)}" if settings.spans_machines else ""
        raise FileNotFoundError(
            f"model: {settings.model} has no config.json{where}: every machine that replicas run "
            "on needs the model in this directory"
        )


def _shared(settings: Settings, *, num_threads: int, memory_share: float) -> Settings:
    engine = settings.engine
    shares: dict[str, Any] = {
        "num_threads": engine.num_threads or max(1, num_threads),
        "cpu_memory_share": engine.cpu_memory_share or memory_share,
    }
    return settings.model_copy(update={"engine": engine.model_copy(update=shares)})
