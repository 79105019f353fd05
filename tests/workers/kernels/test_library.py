"""Library: kernels by name, checked arguments, programs that play again."""

import ctypes

import pytest

from workers.kernels.library import Library


class _Wrong(ctypes.Structure):
    _fields_ = (("one", ctypes.c_int64),)


def test_arguments_of_another_size_are_refused(library: Library) -> None:
    with pytest.raises(TypeError, match="8 bytes"):
        library.kernel("add_rms_norm", _Wrong)
