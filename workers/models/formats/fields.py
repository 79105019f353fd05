"""Fields of quantization_config that leave no or few choices."""

from typing import TypeVar

from workers.models.errors import UnsupportedModelError
from workers.models.raw_config import RawConfig

T = TypeVar("T")


def chosen(name: str, value: object, accepted: tuple[T, ...]) -> T:
    """The value, if it is an accepted one; raises UnsupportedModelError."""
    for choice in accepted:
        if choice == value:
            return choice
    choices = ", ".join(map(repr, accepted))
    raise UnsupportedModelError(f"quantization_config.{name} is {value!r}; supported: {choices}")


def refuse_present(config: RawConfig, *names: str) -> None:
    """Raises UnsupportedModelError if an object that changes the layers' meaning is not empty."""
    for name in names:
        section = config.section(name)
        if section is not None:
            fields = ", ".join(section)
            raise UnsupportedModelError(
                f"quantization_config.{name} has {fields}; supported: nothing within it"
            )


def group_size(config: RawConfig) -> int:
    """Inputs that share a scale, -1 for all; raises UnsupportedModelError."""
    size = config.integer("group_size")
    if size != -1 and size < 1:
        raise UnsupportedModelError(
            f"quantization_config.group_size is {size}; supported: -1 and positive numbers"
        )
    return size
