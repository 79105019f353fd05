"""Make a model of a real shape with random weights: `python -m ops.models.random_model SHAPE DIR`.

Such a model says nothing sensible, at exactly the speed of one that does.
"""

import json
import math
from collections.abc import Iterator
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ops.models import UnknownModelError, hf_format, resolve
from ops.models.shape import Shape
from ops.models.shapes import NAMED

WEIGHT_STD = 0.02
SHARD_BYTES = 1 << 30
"""Largest file of weights, and so about the memory that making a model of any size takes."""

Tensors = list[tuple[str, tuple[int, ...]]]


class Dtype(StrEnum):
    """Dtypes that weights can have."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def torch(self) -> torch.dtype:
        """The dtype as torch has it."""
        dtype: torch.dtype = getattr(torch, self.value)
        return dtype


def main(
    shape: Annotated[str, typer.Argument(help=f"one of {', '.join(NAMED)}")],
    folder: Annotated[Path, typer.Argument(help="where the model goes")],
    dtype: Annotated[Dtype, typer.Option(help="of the weights")] = Dtype.BFLOAT16,
    seed: Annotated[int, typer.Option(help="of the weights")] = 0,
) -> None:
    """Write a random model of the named shape."""
    try:
        make_random_model(shape, folder, dtype, seed)
    except UnknownModelError as error:
        raise typer.BadParameter(str(error)) from error


def make_random_model(
    name: str, folder: Path, dtype: Dtype = Dtype.BFLOAT16, seed: int = 0
) -> None:
    """Write a random model of the named shape into `folder`.

    Raises UnknownModelError for a name that no shape has.
    """
    if name not in NAMED:
        raise UnknownModelError(f"shape: got {name!r}, expected one of {', '.join(NAMED)}")
    write_random_model(NAMED[name], folder, dtype, seed)


def write_random_model(
    shape: Shape,
    folder: Path,
    dtype: Dtype = Dtype.BFLOAT16,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write configuration, tokenizer and weights; the same arguments give the same bytes.

    Raises ValueError where the shape's vocabulary cannot hold the demo model's tokenizer.
    """
    hf_format.write_config(folder, shape, widened_tokenizer(shape.vocab_size), dtype.value)
    shards = list(plan_shards(shape, dtype, shard_bytes))
    names = _shard_names(len(shards))
    for name, tensors in zip(names, shards, strict=True):
        weights = {tensor: random_tensor(tensor, dims, dtype, seed) for tensor, dims in tensors}
        save_file(weights, folder / name, {"format": "pt"})
    if len(shards) > 1:
        _write_index(folder, shape, dtype, dict(zip(names, shards, strict=True)))


def random_tensor(name: str, dims: tuple[int, ...], dtype: Dtype, seed: int) -> Tensor:
    """Norms are one, biases nought, matrices normal; depends on seed and name alone."""
    if name.endswith("norm.weight"):
        return torch.ones(dims, dtype=dtype.torch)
    if name.endswith(".bias"):
        return torch.zeros(dims, dtype=dtype.torch)
    digest = blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.empty(dims, dtype=dtype.torch).normal_(0, WEIGHT_STD, generator=generator)


def plan_shards(shape: Shape, dtype: Dtype, shard_bytes: int) -> Iterator[Tensors]:
    """The tensors of each file, in order; only a single tensor may exceed `shard_bytes`."""
    shard: Tensors = []
    size_bytes = 0
    for name, dims in shape.tensors():
        tensor_bytes = math.prod(dims) * dtype.torch.itemsize
        if shard and size_bytes + tensor_bytes > shard_bytes:
            yield shard
            shard, size_bytes = [], 0
        shard.append((name, dims))
        size_bytes += tensor_bytes
    yield shard


def widened_tokenizer(vocab_size: int) -> Tokenizer:
    """The demo model's tokenizer with made-up words behind its own, so that every id has a text.

    Prompts never contain those words, but the answers of a random model consist of them.
    """
    path = resolve("demo") / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    if vocab_size < len(vocabulary):
        raise ValueError(f"vocab_size: got {vocab_size}, expected at least {len(vocabulary)}")
    for token_id in range(len(vocabulary), vocab_size):
        vocabulary[f"Ġword{token_id}"] = token_id  # Ġ is how byte-level BPE spells a space
    return Tokenizer.from_str(json.dumps(content))


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{index:05}-of-{count:05}.safetensors" for index in range(1, count + 1)]


def _write_index(folder: Path, shape: Shape, dtype: Dtype, shards: dict[str, Tensors]) -> None:
    index = {
        "metadata": {"total_size": shape.num_parameters * dtype.torch.itemsize},
        "weight_map": {tensor: file for file, tensors in shards.items() for tensor, _ in tensors},
    }
    hf_format.write_json(folder / "model.safetensors.index.json", index)


if __name__ == "__main__":
    typer.run(main)
