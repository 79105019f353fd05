"""Builds: one for each instruction set and source, kept; typed errors where none can be made."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from workers.kernels import build as builds
from workers.kernels.build import BuildError, build, file_name, main
from workers.kernels.instruction_set import INSTRUCTION_SETS, InstructionSet, cpu_flags, runnable

AVX2 = INSTRUCTION_SETS[-1]


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources that compile in a moment."""
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    (folder / "two.cpp").write_text('#include "two.h"\nextern "C" int two() { return kTwo; }\n')
    (folder / "two.h").write_text("constexpr int kTwo = 2;\n")
    monkeypatch.setattr(builds, "SOURCES", folder)
    return folder


@pytest.fixture
def compiler(sources: Path) -> None:
    try:
        builds._compiler()
    except BuildError as error:
        pytest.skip(str(error))


def test_other_sources_headers_and_flags_give_other_names(sources: Path) -> None:
    names = [file_name(isa) for isa in INSTRUCTION_SETS]
    (sources / "two.h").write_text("constexpr int kTwo = 3;\n")
    names += [file_name(isa) for isa in INSTRUCTION_SETS]
    (sources / "three.cpp").touch()
    names.append(file_name(AVX2))
    names.append(file_name(AVX2._replace(compiler_flags=())))
    assert len(set(names)) == len(names)


@pytest.mark.usefixtures("compiler")
def test_a_library_is_built_once(tmp_path: Path) -> None:
    """Also by many at the same time; nothing but it is left behind."""
    folder = tmp_path / "cache" / "kernels"
    with ThreadPoolExecutor(4) as callers:
        paths = list(callers.map(lambda _: build(AVX2, folder), range(4)))
    assert set(paths) == {folder / file_name(AVX2)}
    assert [path.name for path in folder.iterdir()] == [paths[0].name]
    built_at = paths[0].stat().st_mtime_ns
    assert build(AVX2, folder).stat().st_mtime_ns == built_at


@pytest.mark.usefixtures("compiler")
def test_what_the_compiler_says_is_told(sources: Path, tmp_path: Path) -> None:
    (sources / "one.cpp").write_text("int one() { return undeclared; }\n")
    with pytest.raises(BuildError, match="undeclared"):
        build(AVX2, tmp_path)
    assert not list(tmp_path.glob("*.so"))


def test_no_compiler_is_a_build_error(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match="install g\\+\\+"):
        build(AVX2, tmp_path)


def test_the_command_tells_why_it_failed(
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert main([str(tmp_path)]) == 1
    assert "no C++ compiler" in capsys.readouterr().err


@pytest.mark.parametrize("isa", INSTRUCTION_SETS, ids=lambda isa: str(isa.name))
def test_a_processor_runs_what_its_flags_allow(isa: InstructionSet, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags\t\t: fpu {' '.join(isa.cpu_flags)} sse2\n")
    found = runnable(cpu_flags(cpuinfo))
    assert found == list(INSTRUCTION_SETS[INSTRUCTION_SETS.index(isa) :])
    assert runnable(cpu_flags(cpuinfo) - {"fma"}) == []


def test_nothing_runs_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert runnable(cpu_flags(tmp_path / "cpuinfo")) == []
