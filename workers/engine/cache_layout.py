"""What keys and values in a cache depend on, beside tokens and the model's files."""

import json
from hashlib import blake2b

from cluster.settings import EngineSettings
from workers.engine.cache_size import cache_dtype
from workers.models.causal_lm import CausalLM
from workers.parallel.group import Ranks

_VERSION = 1
"""Of the order in which a block's bytes lie in a slot."""


def cache_layout(model: CausalLM, settings: EngineSettings, ranks: Ranks) -> bytes:
    """A name (16 bytes) that caches of ranks share whose blocks, byte for byte, mean the same.

    Sequence ranks hold different blocks, of which each is as it would be with another one.
    """
    shape = model.shape
    says = {
        "version": _VERSION,
        "dtype": str(cache_dtype(model, settings)),
        "block_size": settings.block_size,
        "layers": [shape.layers.start, shape.layers.stop],
        "kv_heads": shape.num_kv_heads,
        "heads_of": [ranks.dense.rank, ranks.dense.size],
        "head_dim": shape.head_dim,
        # Other weights and activations make other keys and values.
        "activations": str(model.dtype),
        "quantization": settings.quantization,
        "group_size": settings.quantization_group_size,
        "overrides": sorted(settings.quantization_overrides.items()),
        # Bits are the same only where the same kernels computed them in the same order.
        "exact": _kernels(model) if settings.deterministic else None,
    }
    return blake2b(json.dumps(says, sort_keys=True).encode(), digest_size=16).digest()


def _kernels(model: CausalLM) -> str:
    return "torch" if model.library is None else model.library.isa
