"""The ways to compute attention, by name."""

from collections.abc import Callable

import torch

from workers.kernels.arguments import ROW_DTYPES
from workers.kernels.cpu_attention import MAX_HEAD_DIM
from workers.kernels.library import load_library
from workers.layers.attention import AttentionBackend, AttentionShape
from workers.layers.native_attention import NativeAttention, attention_library
from workers.layers.reference_attention import ReferenceAttention
from workers.layers.sdpa_attention import SdpaAttention
from workers.layers.sequence_attention import SequenceParallelAttention
from workers.parallel.group import Group
from workers.registry import Registry

ATTENTION_BACKENDS: Registry[Callable[[AttentionShape], AttentionBackend]] = Registry(
    "attention backend",
    {"native": NativeAttention, "reference": ReferenceAttention, "sdpa": SdpaAttention},
)


def attention_backend(
    name: str,
    shape: AttentionShape,
    dtype: torch.dtype,
    device: torch.device,
    *,
    deterministic: bool = False,
    sequence: Group | None = None,
) -> AttentionBackend:
    """A backend by name; "auto" is the fastest that can serve the model here.

    A deterministic one gives a query the same result whatever is computed beside it. `sequence` are
    the ranks that hold different parts of the KV cache, if there are any: then the kernels compute
    for "native", and plain torch for any other name.

    Raises UnknownChoiceError for any other name that is not in ATTENTION_BACKENDS, ValueError if
    the backend cannot serve the model.
    """
    is_native = device.type == "cpu" and dtype in ROW_DTYPES
    if name == "auto":
        is_native = is_native and shape.head_dim <= MAX_HEAD_DIM and load_library() is not None
        name = "native" if is_native else "sdpa"
    elif name == "native" and not is_native:
        raise ValueError(
            f"attention: got 'native' with {dtype} on {device.type}, "
            f"expected one of {ROW_DTYPES} on cpu"
        )
    if sequence is not None and sequence.size > 1:
        return _sequence_parallel(name, shape, sequence, deterministic=deterministic)
    if not deterministic:
        return ATTENTION_BACKENDS.get(name)(shape)
    if name != "native":
        raise ValueError(
            f"engine.deterministic: got attention {name!r}, expected 'native', which needs a CPU "
            "with AVX2 and a C++ compiler"
        )
    return NativeAttention(shape, row_by_row=True)


def _sequence_parallel(
    name: str, shape: AttentionShape, group: Group, *, deterministic: bool
) -> AttentionBackend:
    ATTENTION_BACKENDS.get(name)
    if deterministic:
        raise ValueError(
            f"engine.deterministic: got engine.parallel.sequence {group.size}, expected 1: which "
            "rank holds a block, and so how sums are rounded, depends on what else is served"
        )
    library = attention_library() if name == "native" else None
    return SequenceParallelAttention(shape, group, library)
