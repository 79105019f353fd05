"""An engine in one configuration, which counts as an engine of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OURS = "trunkline"
"""The virtual environment of our own engine: the one that this program runs in."""

Width = Literal["float", "int8", "int4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """How to run an engine, and what to hold it against."""

    name: str
    venv: str
    """Its folder under .peers, and the name of its requirements."""
    module: str
    """The program, in ops.bench.peers.engines."""
    options: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    """Patterns, below the virtual environment or the root, of libraries to load first."""
    format: str | None = None
    """What its program's `convert` makes of the model, if it cannot read it as it is."""
    width: Width = "float"
    """Of its weights: only engines of the same width are compared by a ratio."""
    weight_bytes: float = 2.0
    """Of one weight, its part of a scale included."""
    kv_bytes: float = 2.0
    prefix_caching: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether it is one of ours."""
        return self.venv == OURS
