"""`trunkline bench peers`, as far as it goes without any peer."""

from pathlib import Path

import pytest

from ops.bench.peers.models import model_folder
from ops.bench.peers.offline import bench_offline
from ops.models import UnknownModelError, resolve


@pytest.mark.parametrize(
    ("engines", "works", "words"),
    [
        (["trunkline", "nobody"], [], "engines: got 'nobody', expected the beginning of any of"),
        ([], ["decode", "sing"], "works: got 'sing', expected any of decode, prefill"),
    ],
)
def test_names_that_there_are_not_are_refused(
    engines: list[str], works: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        bench_offline(resolve("demo-small"), engines, works, runs=1)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"config\.json"):
        bench_offline(tmp_path, [], [], runs=1)


def test_models_are_folders_or_shapes() -> None:
    folder = resolve("demo-small")
    assert model_folder(str(folder)) == folder
    with pytest.raises(UnknownModelError, match="model: got 'no-such-model'"):
        model_folder("no-such-model")
