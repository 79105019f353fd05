"""The sliding windows of Qwen's layers."""

from workers.models.errors import UnsupportedModelError
from workers.models.raw_config import RawConfig


def layer_windows(raw: RawConfig, kinds: list[str] | None = None) -> tuple[int | None, ...]:
    """Each layer's window in tokens, from `layer_types` or, in older files, `max_window_layers`.

    `kinds` are the layers' types in older files of an architecture with a rule of its own.

    Raises UnsupportedModelError for a layer type that is neither full nor sliding attention.
    """
    num_layers = raw.integer("num_hidden_layers")
    if not raw.flag("use_sliding_window", False):
        return (None,) * num_layers
    window = raw.integer("sliding_window", 4096)
    older = kinds or _kinds(num_layers, raw.integer("max_window_layers", 28))
    kinds = raw.texts("layer_types") or older
    if len(kinds) != num_layers or not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise UnsupportedModelError(
            f"configuration field 'layer_types' is {kinds!r}, expected {num_layers} entries, "
            "each 'full_attention' or 'sliding_attention'"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _kinds(num_layers: int, max_window_layers: int) -> list[str]:
    return [
        "full_attention" if layer < max_window_layers else "sliding_attention"
        for layer in range(num_layers)
    ]
