"""Weights in safetensors files."""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from workers.models.errors import CheckpointError
from workers.models.raw_config import RawConfig

_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"

Part = tuple[slice, ...]
"""Rows, or rows and columns, of a stored tensor."""


class Checkpoint:
    """A model's stored tensors, mapped into memory and read part by part.

    A context manager: the files are open within it. Tensors that were neither converted nor
    packed stay mapped after it ends, so that replicas on one machine share their pages; files
    must be replaced, not overwritten, while a model runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        self._unread: set[str] = set()
        self._passed_over: set[str] = set()

    def __enter__(self) -> Self:
        for path in _weight_files(self._folder):
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"cannot read {path}: {error}") from error
            self._files.update(dict.fromkeys(file.keys(), file))
        self._unread = set(self._files)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return list(_weight_files(self._folder))

    @property
    def unread(self) -> list[str]:
        """Names of the tensors that nothing has asked for, sorted."""
        return sorted(name for name in self._unread if self._passed_over.isdisjoint(_paths(name)))

    def pass_over(self, path: str) -> None:
        """Take a tensor, or all those of a module, as asked for: other ranks read them."""
        self._passed_over.add(path)

    def is_zero_bias(self, name: str) -> bool:
        """Whether a tensor is named as a bias and holds nothing but zeros."""
        return name.endswith(".bias") and not bool(self._files[name].get_tensor(name).any())

    def read(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, part: Part = ()
    ) -> torch.Tensor:
        """A tensor, or the part of it that a rank holds, in `dtype`.

        Raises CheckpointError if there is none of that name or its whole shape is not `shape`.
        """
        if name not in self._files:
            raise CheckpointError(f"{self._folder} lacks the tensor {name}")
        self._unread.discard(name)
        stored = self._files[name].get_slice(name)
        found = tuple(stored.get_shape())
        if found != shape:
            raise CheckpointError(f"tensor {name} has shape {found}, expected {shape}")
        tensor: torch.Tensor = stored[part] if part else self._files[name].get_tensor(name)
        return tensor.to(dtype)


def _paths(name: str) -> Iterable[str]:
    """A tensor's name, and those of the modules that it is in."""
    return accumulate(name.split("."), lambda path, part: f"{path}.{part}")


def _weight_files(folder: Path) -> Iterable[Path]:
    index = folder / _INDEX_FILE
    if index.exists():
        weight_map = RawConfig.read(index).section("weight_map") or RawConfig({})
        return [folder / name for name in sorted({weight_map.text(key) for key in weight_map})]
    if (folder / _SINGLE_FILE).exists():
        return [folder / _SINGLE_FILE]
    raise CheckpointError(f"{folder} holds neither {_SINGLE_FILE} nor {_INDEX_FILE}")
