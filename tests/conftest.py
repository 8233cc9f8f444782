"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors gain nothing from threads; threads that wait for a busy core cost minutes."""
    torch.set_num_threads(1)
