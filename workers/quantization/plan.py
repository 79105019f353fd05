"""Which weights are quantized while they are loaded, and how."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch

from cluster.settings import EngineSettings, QuantizationScheme
from workers.quantization.quantize import quantize_int4, quantize_int8
from workers.quantization.quantized_weight import QuantizedWeight

HEAD = "lm_head"
"""Name of the head's module, also where it shares the embedding's table."""


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """A scheme for all linear layers, and exceptions by name.

    "int8" quantizes weights per output and activations per row (W8A8), "int8_weight_only" only
    weights, "int4" weights by groups and activations per row (W4A8). The head decides on every
    token and bears 4 bits badly, so "int4" means "int8" for it unless an exception says otherwise.
    """

    scheme: QuantizationScheme = "none"
    group_size: int = 32
    """Inputs that share a scale, for int4."""
    overrides: Mapping[str, QuantizationScheme] = field(default_factory=dict)
    """Schemes by glob pattern on module names such as model.layers.0.mlp.down_proj; of several
    patterns that match, the last one holds."""

    @classmethod
    def of(cls, settings: EngineSettings) -> "QuantizationPlan":
        """What the settings ask for."""
        return cls(
            settings.quantization,
            settings.quantization_group_size,
            settings.quantization_overrides,
        )

    def check_overrides(self, modules: Iterable[str]) -> None:
        """Raises ValueError naming a pattern that matches none of a model's linear modules."""
        names = list(modules)
        for pattern in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"engine.quantization_overrides: got {pattern!r}, expected a pattern that "
                    f"matches a linear module, such as {names[0]} or {names[-1]}"
                )

    def override(self, module: str) -> QuantizationScheme | None:
        """The exception that holds for a module, if there is one."""
        found = [scheme for glob, scheme in self.overrides.items() if fnmatchcase(module, glob)]
        return found[-1] if found else None

    def scheme_of(self, module: str) -> QuantizationScheme:
        """The scheme of one linear module."""
        default = "int8" if module == HEAD and self.scheme == "int4" else self.scheme
        return self.override(module) or default

    def apply(self, module: str, weight: torch.Tensor) -> torch.Tensor | QuantizedWeight:
        """A module's weight [N, K], quantized if the plan says so.

        Raises ValueError if its inputs do not divide into groups.
        """
        scheme = self.scheme_of(module)
        if scheme == "none":
            return weight
        if scheme == "int8":
            return quantize_int8(weight, "int8")
        if scheme == "int8_weight_only":
            return quantize_int8(weight, "none")
        if weight.shape[1] % self.group_size:
            raise ValueError(
                f"engine.quantization_group_size: got {self.group_size}, expected a divisor of the "
                f"{weight.shape[1]} inputs of {module}, or for it another scheme than int4 in "
                "engine.quantization_overrides"
            )
        return quantize_int4(weight, self.group_size, "int8")
