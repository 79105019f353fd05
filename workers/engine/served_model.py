"""The model as an engine's settings want it."""

from collections.abc import Callable
from pathlib import Path

import torch

from cluster.settings import EngineSettings
from workers.engine.cpus import usable_cpus
from workers.kernels.library import load_library
from workers.models.causal_lm import CausalLM
from workers.models.loader import load_model
from workers.parallel.group import Ranks
from workers.quantization.plan import QuantizationPlan

_DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def served_model(
    model_dir: Path,
    settings: EngineSettings,
    progress: Callable[[int, int], None] | None,
    ranks: Ranks | None = None,
) -> CausalLM:
    """Load a model, or one rank's share, and divide the threads between torch and our kernels.

    Raises what `load_model` raises.
    """
    num_threads = settings.num_threads or usable_cpus()
    torch.set_num_threads(num_threads)
    library = load_library()
    if library is not None:
        library.set_num_threads(num_threads)
    model = load_model(
        model_dir,
        dtype=_DTYPES[settings.dtype],
        device=device_of(settings),
        attention=settings.attention,
        progress=progress,
        plan=QuantizationPlan.of(settings),
        packed_cache_bytes=settings.packed_cache_bytes,
        deterministic=settings.deterministic,
        ranks=ranks,
        spare_experts=settings.spare_experts,
    )
    if model.is_native:
        torch.set_num_threads(1)  # its threads would spin on the cores that ours need
    elif library is not None:
        library.set_num_threads(num_threads, shared_with_torch=True)
    return model


def device_of(settings: EngineSettings) -> torch.device:
    """Where the model runs."""
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)
