"""Why a model cannot be loaded."""


class UnsupportedModelError(ValueError):
    """A model whose configuration asks for something that is not implemented."""


class UnsupportedLayoutError(ValueError):
    """A layout of ranks that the model cannot be divided by."""


class CheckpointError(ValueError):
    """A checkpoint whose files or tensors are not what its configuration promises."""
