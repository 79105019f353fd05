"""What sets one decoder-only architecture apart from another."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What checkpoints call the parts of a sparse layer, within the layer."""

    block: str
    """Holds the router, `gate`, and `experts`."""
    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """The feed-forward part of sparse layers, in which a router sends each row to a few experts
    (Shazeer et al., 2017; Jiang et al., 2024)."""

    num_experts: int
    experts_per_token: int
    intermediate_size: int
    """Of each expert."""
    renormalises: bool
    """Whether the weights of a row's experts are scaled to sum to 1."""
    sparse_layers: tuple[bool, ...]
    """For each layer, whether it has experts; the others have one dense MLP."""
    names: ExpertNames
    shared_intermediate_size: int = 0
    """Of the expert that every row goes to beside its own; 0 without one."""

    @property
    def linear_modules(self) -> list[str]:
        """Names, within a sparse layer, of the modules that can be quantized."""
        parts = (self.names.gate, self.names.up, self.names.down)
        names = [
            f"{self.names.block}.experts.{expert}.{part}"
            for expert in range(self.num_experts)
            for part in parts
        ]
        if self.shared_intermediate_size:
            names += [f"{self.names.block}.shared_expert.{part}" for part in parts]
        return names


@dataclass(frozen=True, slots=True)
class Architecture:
    """The parts of a decoder layer that differ between the supported architectures."""

    windows: tuple[int | None, ...]
    """Each layer's sliding window in tokens; None sees everything."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """Whether each head of the queries and keys is RMS-normalised before rotation."""
    experts: MixtureOfExperts | None = None
    """None where every layer is dense."""
