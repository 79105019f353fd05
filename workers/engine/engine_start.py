"""Starts an engine together with the ranks that its settings ask for."""

from collections.abc import Callable
from pathlib import Path

from cluster.settings import EngineSettings
from workers.engine.engine import Engine
from workers.engine.gang import ProcessGang
from workers.engine.launcher import Launcher
from workers.parallel.layout import ParallelLayout


def start_engine(
    model_dir: Path,
    settings: EngineSettings,
    make_launcher: Callable[[], Launcher],
    progress: Callable[[int, int], None] | None = None,
) -> Engine:
    """An engine in this process, which is the leader; to be closed.

    Args:
        model_dir: By which all ranks find the model.
        settings: Of the whole replica.
        make_launcher: For the other ranks, if there are any.
        progress: Told (layers loaded, layers in all) of all ranks together, on any thread.

    Raises what Engine and ProcessGang raise; no rank is left then.
    """
    if ParallelLayout(**settings.parallel.model_dump()).world_size == 1:
        return Engine(model_dir, settings, progress)
    gang = ProcessGang(model_dir, settings, make_launcher(), progress)
    try:
        return Engine(model_dir, gang.settings, gang.note_progress, gang)
    except BaseException:
        gang.close()
        raise
