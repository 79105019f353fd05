"""The one model that all engines of a comparison get."""

from pathlib import Path

from ops.bench.peers.venvs import PEERS
from ops.models import resolve
from ops.models.random_model import write_random_model
from ops.models.shapes import NAMED


def model_folder(name_or_path: str) -> Path:
    """A directory as it is; for the name of a shape, a random model that is made once and kept.

    Raises UnknownModelError if it is neither.
    """
    if name_or_path not in NAMED:
        return resolve(name_or_path)
    folder = PEERS / "models" / name_or_path
    if not folder.exists():
        made = folder.with_suffix(".partial")
        made.mkdir(parents=True, exist_ok=True)
        write_random_model(NAMED[name_or_path], made)
        made.rename(folder)
    return folder
