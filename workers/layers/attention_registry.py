"""The ways to compute attention, by name."""

from collections.abc import Callable

from workers.layers.attention import AttentionBackend, AttentionShape
from workers.layers.reference_attention import ReferenceAttention
from workers.layers.sdpa_attention import SdpaAttention
from workers.registry import Registry

ATTENTION_BACKENDS: Registry[Callable[[AttentionShape], AttentionBackend]] = Registry(
    "attention backend", {"reference": ReferenceAttention, "sdpa": SdpaAttention}
)
