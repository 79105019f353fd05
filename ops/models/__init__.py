"""The demo models that ship with Trunkline, and makers of models: by training and at random."""

from pathlib import Path

SHIPPED = {"demo": "demo", "demo-small": "demo_small"}
"""Folders, beside this file, of the models that ship."""

HELD_OUT = Path(__file__).with_name("held_out.txt")
"""Text of the kind that the shipped models were trained on, and that none of them has read."""


class UnknownModelError(ValueError):
    """A model that is neither shipped nor a directory."""


def resolve(name_or_path: str | Path) -> Path:
    """The directory of a shipped model ("demo", "demo-small"), or the existing one that is named.

    Raises UnknownModelError for anything else.
    """
    folder = SHIPPED.get(str(name_or_path))
    if folder is not None:
        return Path(__file__).parent / folder
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        names = ", ".join(SHIPPED)
        raise UnknownModelError(
            f"model: got {str(name_or_path)!r}, expected one of {names} or an existing directory"
        )
    return path
