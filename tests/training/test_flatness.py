"""Gradients that lead to flat minima, against the paper's formulas on a bowl."""

import pytest
import torch
from torch import Tensor, nn

from distill_datasets.training.flatness import Flatness, uphill

CURVES = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
START = torch.tensor([1.0, -2.0], dtype=torch.float64)


class Bowl(nn.Module):
    """L(w) = w.A.w / 2, whose gradient is A w; it counts how often it is looked at."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(start.clone())
        self.register_buffer("looks", torch.zeros(()))

    def gradient(self, index_B: Tensor, step: int) -> Tensor:
        loss = self.weight @ CURVES @ self.weight / 2
        loss.backward()
        assert isinstance(self.looks, Tensor)
        self.looks += 1
        return loss.detach()


@pytest.mark.parametrize("surrogate", [0.0, 0.3])
def test_the_gradient_is_the_one_uphill_less_what_it_lacks_of_the_one_here(
    surrogate: float,
) -> None:
    bowl = Bowl(START)
    settings = Flatness(radius=0.5, surrogate=surrogate)
    loss = uphill(settings, bowl.gradient, bowl)(torch.arange(1), 0)
    here = CURVES @ START
    there = CURVES @ (START + 0.5 * here / here.norm())
    unit = there / there.norm()
    expected = there - surrogate * (here - (here @ unit) * unit)
    assert bowl.weight.grad is not None
    torch.testing.assert_close(bowl.weight.grad, expected)
    assert torch.equal(bowl.weight, START) and loss == START @ CURVES @ START / 2
    assert bowl.looks == 1  # as the weights themselves have left it


def test_at_the_bottom_the_gradient_is_zero() -> None:
    bowl = Bowl(torch.zeros(2, dtype=torch.float64))
    uphill(Flatness(radius=0.5), bowl.gradient, bowl)(torch.arange(1), 0)
    assert bowl.weight.grad is not None and not bowl.weight.grad.any()
