"""An engine's settings as one rank of it gets them."""

from cluster.settings import EngineSettings
from workers.engine.memory import CPU_SHARE


def settings_of_a_rank(
    settings: EngineSettings, num_cpus: int, num_neighbours: int
) -> EngineSettings:
    """With its part of the cores and of the memory that it shares with ranks of its replica.

    Args:
        settings: Of the replica. What they say of threads and memory holds for each rank.
        num_cpus: Cores of the rank's machine.
        num_neighbours: Ranks of the replica there, itself included.
    """
    return settings.model_copy(
        update={
            "num_threads": settings.num_threads or max(1, num_cpus // num_neighbours),
            "cpu_memory_share": settings.cpu_memory_share or CPU_SHARE / num_neighbours,
        }
    )
