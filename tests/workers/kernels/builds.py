"""The builds of the kernels that tests run on."""

from hashlib import blake2b
from pathlib import Path

import pytest

from workers.kernels.build import BuildError, build, builds_dir
from workers.kernels.instruction_set import INSTRUCTION_SETS, InstructionSet, cpu_flags, runnable
from workers.kernels.library import Library

_EMULATION = Path(__file__).parent / "emulation"
_SIMDE = Path("/usr/include/simde/x86/avx512.h")


def _emulated() -> InstructionSet:
    """The code for AVX512, VNNI and BF16 in terms of AVX2, by SIMDe."""
    avx2 = INSTRUCTION_SETS[-1]
    digest = blake2b((_EMULATION / "immintrin.h").read_bytes(), digest_size=8).hexdigest()
    flags = (
        "-O1",  # the emulation is slow in any case, and three times as fast to compile
        "-DTRUNKLINE_EMULATED_AVX512",
        f"-DEMULATION={digest}",
        *("-isystem", str(_EMULATION)),
    )
    return InstructionSet("avx512_emulated", avx2.cpu_flags, (*avx2.compiler_flags, *flags))


_BY_NAME = {isa.name: isa for isa in (*INSTRUCTION_SETS, _emulated())}

NAMES = (*(isa.name for isa in runnable(cpu_flags())), "avx512_emulated")
"""What this processor can run, and the build for AVX512 emulated."""


def built_library(name: str) -> Library:
    """The library of a build; skips the test where it cannot be had."""
    isa = _BY_NAME[name]
    if not isa.cpu_flags <= cpu_flags():
        pytest.skip(f"{isa.name}: this processor cannot run it")
    if isa.name == "avx512_emulated" and not _SIMDE.exists():
        pytest.skip(f"{isa.name}: SIMDe's headers are missing (Debian: libsimde-dev)")
    try:
        return Library(build(isa, builds_dir()), isa.name)
    except BuildError as error:
        if str(error).startswith("no C++ compiler"):
            pytest.skip(str(error))
        raise
