"""What the golden tests share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors this small gain nothing from threads, which wait on each other on a busy machine."""
    torch.set_num_threads(1)
