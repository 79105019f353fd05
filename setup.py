"""Compiles the CPU kernels into a wheel; everything else stands in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithKernels(build_py):
    """Adds a build of the kernels for every instruction set."""

    def run(self) -> None:
        """Build as usual, then compile."""
        super().run()
        if self.editable_mode:
            return  # a working tree builds for its own machine, into the user's cache
        folder = Path(self.build_lib).resolve() / "workers" / "kernels" / "native" / "lib"
        command = [sys.executable, "-m", "workers.kernels.build", str(folder)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            self.warn("the wheel carries no CPU kernels; they are built at first use instead")


class PlatformDistribution(Distribution):
    """A distribution whose wheel is not for any platform."""

    def has_ext_modules(self) -> bool:
        """The kernels are machine code."""
        return True


class AnyPythonWheel(bdist_wheel):
    """A wheel for one platform and any Python: the kernels know nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """See the class."""
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": AnyPythonWheel},
    distclass=PlatformDistribution,
)
