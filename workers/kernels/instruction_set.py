"""The instruction sets that the CPU kernels are built for."""

from pathlib import Path
from typing import NamedTuple


class InstructionSet(NamedTuple):
    """One build of the kernels."""

    name: str
    cpu_flags: frozenset[str]
    """What /proc/cpuinfo must list for it to run."""
    compiler_flags: tuple[str, ...]


_AVX2_FLAGS = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
_AVX512_FLAGS = (
    *_AVX2_FLAGS,
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
    "-mprefer-vector-width=512",
)
_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi2"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}

INSTRUCTION_SETS = (
    InstructionSet("avx512_bf16", _AVX512 | {"avx512_bf16"}, (*_AVX512_FLAGS, "-mavx512bf16")),
    InstructionSet("avx512", _AVX512, _AVX512_FLAGS),
    InstructionSet("avx2", _AVX2, _AVX2_FLAGS),
)
"""Fastest first."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The features of this machine's processors; empty where the system does not tell."""
    if not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def runnable(flags: frozenset[str]) -> list[InstructionSet]:
    """Those that a processor with these flags can run, fastest first."""
    return [each for each in INSTRUCTION_SETS if each.cpu_flags <= flags]
