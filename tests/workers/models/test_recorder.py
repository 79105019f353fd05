"""What a model's forward pass did once is played back, unless torch took part in it."""

import pytest
import torch

from workers.kernels.library import load_library
from workers.kernels.row_kernels import RowKernels, TorchRowKernels, row_kernels
from workers.models.recorder import Recorder

WIDTH = 32


class Step:
    """A function of fixed memory, and how often Python ran it."""

    def __init__(self, rows: RowKernels) -> None:
        self.rows = rows
        self.residual = torch.zeros(2, WIDTH)
        self.delta = torch.zeros(2, WIDTH)
        self.out = torch.zeros(2, WIDTH)
        self.num_runs = 0

    def run(self) -> None:
        self.num_runs += 1
        weight = torch.ones(WIDTH) if isinstance(self.rows, TorchRowKernels) else WEIGHT
        self.rows.add_rms_norm(self.residual, self.delta, weight, 1e-6, self.out)


WEIGHT = torch.ones(WIDTH)


def test_kernels_are_played_without_python() -> None:
    library = load_library()
    if library is None:
        pytest.skip("needs the CPU kernels")
    step, recorder = Step(row_kernels(library)), Recorder(library)
    for count in range(1, 4):
        step.residual.zero_()
        step.delta.copy_(torch.randn(2, WIDTH))
        recorder.run(2, step.run)
        expected = torch.nn.functional.rms_norm(step.delta, (WIDTH,), None, 1e-6)
        torch.testing.assert_close(step.out, expected)
        assert step.num_runs == 1, count
    recorder.run(3, step.run)  # another number of rows is another program
    assert step.num_runs == 2


def test_what_torch_computes_is_run_each_time() -> None:
    step, recorder = Step(TorchRowKernels()), Recorder(load_library())
    for _ in range(3):
        recorder.run(2, step.run)
    assert step.num_runs == 3
