"""Typed access to a Hugging Face config.json."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workers.models.errors import CheckpointError, UnsupportedModelError


class RawConfig:
    """The fields of a configuration file; a null field reads as an absent one.

    Accessors raise UnsupportedModelError naming the field if it is missing or of another kind.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._nulls = fields.keys() - self._fields.keys()

    @classmethod
    def read(cls, path: Path) -> "RawConfig":
        """Parse a JSON file; raises CheckpointError if it is not there or not an object."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        if not isinstance(fields, dict):
            raise CheckpointError(f"{path} does not hold a JSON object")
        return cls(fields)

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def is_null(self, name: str) -> bool:
        """Whether the field is there and null."""
        return name in self._nulls

    def section(self, name: str) -> "RawConfig | None":
        """An object inside this one, or None where it is absent or empty."""
        value = self._fields.get(name, {})
        if not isinstance(value, dict):
            raise _mismatch(name, value, "an object")
        return RawConfig(value) if value else None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _mismatch(name, value, "a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A real number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _mismatch(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """A truth value."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise _mismatch(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise _mismatch(name, value, "a string")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; empty where absent."""
        value = self._fields.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _mismatch(name, value, "a list of strings")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """One whole number or a list of them; empty where absent."""
        value = self._fields.get(name, [])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise _mismatch(name, value, "a whole number or a list of them")
        return tuple(items)

    def _get(self, name: str, default: object) -> object:
        value = self._fields.get(name, default)
        if value is None:
            raise UnsupportedModelError(f"the model's configuration lacks {name!r}")
        return value


def _mismatch(name: str, value: object, accepted: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"configuration field {name!r} is {value!r}, expected {accepted}")
