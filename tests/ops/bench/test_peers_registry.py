"""Engines can be named, and have what it takes to run them."""

import pytest

from ops.bench.peers.process import PeerError
from ops.bench.peers.registry import all_engines, select
from ops.bench.peers.venvs import ROOT, python


def test_engines_have_names_of_their_own_that_select_them() -> None:
    engines = all_engines(4, 1)
    names = [engine.name for engine in engines]
    assert len(set(names)) == len(names)
    assert [engine.name for engine in select(engines, ["trunkline bf16"])] == ["trunkline bf16"]
    llama = select(engines, ["llama.cpp", "llama.cpp bf16"])
    assert {engine.venv for engine in llama} == {"llama_cpp"}
    assert len(llama) == 3
    with pytest.raises(ValueError, match="engines: got 'llama', expected"):
        select(engines, ["trunkline", "llama"])


def test_every_engine_has_a_program_and_a_list_of_requirements() -> None:
    folder = ROOT / "ops" / "bench" / "peers"
    for engine in all_engines(4, 1):
        assert (folder / "engines" / f"{engine.module}.py").is_file()
        assert engine.is_ours or (folder / "requirements" / f"{engine.venv}.txt").is_file()


def test_an_engine_that_is_not_installed_says_how_to_have_it() -> None:
    with pytest.raises(PeerError, match="make bench-peers"):
        python("no-such-engine")
