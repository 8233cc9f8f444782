"""Products with a Jacobian against those of `torch.autograd.grad`, bit by bit."""

import torch

from distill_datasets.runtime.vector_jacobian import vector_jacobian


def test_the_products_are_those_of_grad_outputs_to_the_bit() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y, unused = (torch.randn(3, 4, generator=rng).requires_grad_() for _ in range(3))
    pulls = [torch.randn(3, 4, generator=rng), torch.randn((), generator=rng)]

    def ends() -> list[torch.Tensor]:
        return [(x * y).exp(), (x @ y.T).sin().sum()]

    expected = torch.autograd.grad(ends(), [x, y, unused], pulls, materialize_grads=True)
    got = vector_jacobian(ends(), [x, y, unused], pulls)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert got[0].abs().min() > 0 and not got[2].any()


def test_ends_without_a_graph_pull_at_nothing() -> None:
    x = torch.ones(2, requires_grad=True)
    constant, pull = torch.ones(2), torch.full((2,), 3.0)
    assert vector_jacobian([constant, 2 * x], [x], [pull, pull])[0].tolist() == [6, 6]
    assert vector_jacobian([constant], [x], [pull])[0].tolist() == [0, 0]
