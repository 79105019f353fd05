"""Packed weights on disk, so that a model packs them once and starts quickly from then on."""

import json
import mmap
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from tempfile import mkdtemp
from time import time
from typing import IO, Any, NamedTuple

import structlog
import torch

from workers.cache_dir import cache_dir
from workers.kernels.cpu_gemm import PackedSpec, PackedWeight

_INDEX, _DATA, _NEW = "index.json", "weights.bin", "new-"
_ALIGNMENT = 4096
_LEAST_BYTES = 64 * 1024 * 1024
"""Smaller models are packed in less time than is worth a file."""

_NUM_SAMPLES, _SAMPLE_BYTES = 64, 1024
_LONG_S = 3600.0
"""Folders of half-written caches that are older were left by processes that are gone."""

_log = structlog.get_logger()


class CachedWeight(NamedTuple):
    """A packed layer, and what it was made of."""

    packed: PackedWeight
    num_bytes: int
    """Of the layer's weights before they were padded and packed."""


class PackedCache:
    """The packed layers of one model, served in one way.

    Either all layers are found, mapped from an earlier run's file, or new ones are collected for
    the next run. Replicas on one machine share the mapped pages.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """What is in `folder`, if anything; `max_bytes` bounds all of its siblings together."""
        self._folder = folder
        self._max_bytes = max_bytes
        self._found = _read(folder)
        self._new: dict[str, CachedWeight] = {}

    @property
    def is_found(self) -> bool:
        """Whether an earlier run left its layers."""
        return bool(self._found)

    def get(self, name: str) -> CachedWeight | None:
        """A layer of an earlier run."""
        return self._found.get(name)

    def add(self, name: str, weight: CachedWeight) -> None:
        """Note a layer for the next run."""
        self._new[name] = weight

    def save(self) -> None:
        """Leave the new layers to the next run. That it cannot be done is logged, and no more."""
        num_bytes = sum(weight.packed.nbytes for weight in self._new.values())
        if self._found or not self._new or not _LEAST_BYTES <= num_bytes <= self._max_bytes:
            return
        try:
            parent = self._folder.parent
            parent.mkdir(parents=True, exist_ok=True)
            _make_room(parent, self._max_bytes - num_bytes)
            scratch = Path(mkdtemp(dir=parent, prefix=_NEW))
            try:
                _write(scratch, self._new)
                scratch.rename(self._folder)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            if self._folder.exists():
                return  # another replica was faster
            _log.warning("packed_cache.not_saved", folder=str(self._folder), reason=str(error))


def packed_cache(
    model_dir: Path, files: list[Path], served_as: Mapping[str, object], max_bytes: int
) -> PackedCache | None:
    """The cache for a model; None for a user without a place for it.

    Args:
        model_dir: Holds config.json.
        files: All that its weights are read from; changed ones make another cache.
        served_as: All else that its packed weights depend on.
        max_bytes: Disk for the caches of all models together.
    """
    identity = blake2b(json.dumps(served_as, sort_keys=True, default=str).encode(), digest_size=16)
    for path in (model_dir / "config.json", *_code()):
        identity.update(path.read_bytes())
    for path in files:
        about = path.stat()
        identity.update(f"{path.resolve()} {about.st_size} {about.st_mtime_ns}".encode())
        identity.update(_samples(path, about.st_size))
    try:
        return PackedCache(cache_dir() / "weights" / identity.hexdigest(), max_bytes)
    except RuntimeError as error:
        _log.warning("packed_cache.unavailable", reason=str(error))
        return None


def _code() -> list[Path]:
    """What reads, quantizes and packs weights."""
    workers = Path(__file__).parent.parent
    folders = (workers / "quantization", workers / "models", workers / "models" / "formats")
    sources = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    native = workers / "kernels" / "native"
    return [*sources, native / "gemm.h", native / "gemm_pack.cpp"]


def _samples(path: Path, size: int) -> bytes:
    """Parts of a file that tell it from others of its size, such as another fine-tune."""
    with path.open("rb") as file:
        return b"".join(
            os.pread(file.fileno(), _SAMPLE_BYTES, size * index // _NUM_SAMPLES)
            for index in range(_NUM_SAMPLES)
        )


def _write(folder: Path, weights: Mapping[str, CachedWeight]) -> None:
    index: dict[str, Any] = {}
    with (folder / _DATA).open("wb") as data:
        for name, (packed, num_bytes) in weights.items():
            tensors = {}
            for part, tensor in packed.tensors.items():
                data.seek(-data.tell() % _ALIGNMENT, os.SEEK_CUR)
                tensors[part] = [
                    data.tell(),
                    str(tensor.dtype).removeprefix("torch."),
                    *tensor.shape,
                ]
                data.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
            spec = asdict(packed.spec)
            index[name] = {"spec": spec, "tensors": tensors, "num_bytes": num_bytes}
        _settle(data)
        size = data.tell()
    with (folder / _INDEX).open("w") as file:
        json.dump({"size": size, "layers": index}, file)
        _settle(file)


def _settle(file: IO[Any]) -> None:
    """Bring a file to the disk, so that it cannot be half there after a power failure."""
    file.flush()
    os.fsync(file.fileno())


def _read(folder: Path) -> dict[str, CachedWeight]:
    """What is in a folder; nothing, if it cannot be read, and then it is removed."""
    try:
        if not folder.exists():
            return {}
        return _map(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        _log.warning("packed_cache.unreadable", folder=str(folder), reason=str(error))
        shutil.rmtree(folder, ignore_errors=True)
        return {}


def _map(folder: Path) -> dict[str, CachedWeight]:
    contents = json.loads((folder / _INDEX).read_text())
    with (folder / _DATA).open("rb") as data:
        pages = mmap.mmap(
            data.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    if len(pages) != contents["size"]:
        raise ValueError(f"{_DATA} has {len(pages)} bytes, expected {contents['size']}")
    with suppress(OSError):
        os.utime(folder)  # the least recently used goes first
        pages.madvise(mmap.MADV_WILLNEED)
    return {
        name: CachedWeight(
            PackedWeight(
                PackedSpec(**entry["spec"]),
                {part: _tensor(pages, *where) for part, where in entry["tensors"].items()},
            ),
            entry["num_bytes"],
        )
        for name, entry in contents["layers"].items()
    }


def _tensor(pages: mmap.mmap, offset: int, dtype_name: str, *shape: int) -> torch.Tensor:
    dtype: torch.dtype = getattr(torch, dtype_name)
    count = torch.Size(shape).numel()
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=offset).view(shape)


def _make_room(parent: Path, allowed_bytes: int) -> None:
    """Remove caches, the least recently used first, until the others take no more than allowed."""
    caches = sorted(filter(_may_go, parent.iterdir()), key=lambda folder: folder.stat().st_mtime)
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in caches}
    excess = sum(sizes.values()) - allowed_bytes
    for folder in caches:
        if excess <= 0:
            return
        shutil.rmtree(folder, ignore_errors=True)
        excess -= sizes[folder]


def _may_go(path: Path) -> bool:
    """Whether it is a cache, and not one that another process is writing now."""
    if not path.is_dir():
        return False
    return not path.name.startswith(_NEW) or time() - path.stat().st_mtime > _LONG_S
