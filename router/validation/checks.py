"""The checks that all fields are made of."""

from collections.abc import Sequence

from cluster.errors import invalid


def check_range(field: str, value: float, low: float, high: float) -> None:
    """A number from `low` to `high`, both included; NaN is none."""
    if not low <= value <= high:
        raise invalid(field, value, f"a number in [{low}, {high}]")


def check_above(field: str, value: float, low: float, high: float) -> None:
    """A number above `low` and up to `high`; NaN is none."""
    if not low < value <= high:
        raise invalid(field, value, f"a number in ({low}, {high}]")


def check_count(field: str, count: int, most: int) -> None:
    """At most so many elements or characters."""
    if count > most:
        raise invalid(field, count, f"at most {most}")


def check_token_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Ids of the model's vocabulary."""
    largest = max(token_ids, default=0)
    if largest >= vocab_size:
        position = list(token_ids).index(largest)
        raise invalid(f"{field}[{position}]", largest, f"a token id below {vocab_size}")
