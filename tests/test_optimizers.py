"""The inner optimizers: torch's rules, differentiable."""

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from distill_datasets.optimizers import Adam, Optimizer, Sgd, cosine

# torch adds epsilon to the root *after* its bias correction; with so small a one it does not show
RULES = [
    Adam(lr=0.01, epsilon=1e-15),
    Adam(lr=0.1, beta1=0.5, beta2=0.9, epsilon=1e-15),
    Adam(lr=0.1, beta1=0.0, beta2=0.0, epsilon=1e-15),
    Sgd(lr=0.1),
    Sgd(lr=0.1, momentum=0.5, weight_decay=0.1),
    Sgd(lr=0.1, momentum=0.0),
]


def follow(
    rule: Optimizer, weights_P: Tensor, gradient: Callable[[Tensor, int], Tensor], steps: int
) -> Tensor:
    """Weights after some steps, still connected to `weights_P`."""
    state = rule.start(weights_P)
    for step in range(1, steps + 1):
        weights_P, state = rule.step(weights_P, state, gradient(weights_P, step), step)
    return weights_P


def start_P() -> Tensor:
    return torch.linspace(-2, 2, 8, dtype=torch.float64)


def bumpy(weights_P: Tensor, step: int) -> Tensor:
    """A gradient that changes its sign and size from step to step."""
    return (weights_P + step).sin() + 0.5 * weights_P


@pytest.mark.parametrize("rule", RULES)
def test_rule_is_that_of_torch(rule: Optimizer) -> None:
    parameter = start_P().requires_grad_()
    optimizer = rule.torch_optimizer([parameter])
    for step in range(1, 6):
        parameter.grad = bumpy(parameter.detach(), step)
        optimizer.step()
    torch.testing.assert_close(follow(rule, start_P(), bumpy, 5), parameter, rtol=0, atol=1e-10)


def test_first_step_of_adam_has_the_size_of_its_rate() -> None:
    grad_P = torch.tensor([3.0, -0.002, 0.0], dtype=torch.float64)
    moved_P = follow(Adam(lr=0.1), torch.zeros_like(grad_P), lambda *_: grad_P, 1)
    torch.testing.assert_close(
        moved_P, torch.tensor([-0.1, 0.1, 0], dtype=torch.float64), rtol=0, atol=2e-5
    )


def test_epsilon_is_added_to_the_root_before_the_bias_correction() -> None:
    # m = 0.1, v = 0.001, rate = sqrt(0.001) / 0.1, and epsilon as large as the root of v
    root = 0.001**0.5
    moved_P = follow(
        Adam(lr=1, epsilon=root), torch.zeros(1, dtype=torch.float64), lambda w, _: w + 1, 1
    )
    assert moved_P.item() == pytest.approx(-root * 0.1 / 0.1 / (2 * root))


def test_second_step_of_momentum_by_hand() -> None:
    # 1 - 0.1 * 2 = 0.8, then a velocity of 0.5 * 2 + 2 = 3: 0.8 - 0.1 * 3 = 0.5
    moved_P = follow(
        Sgd(lr=0.1, momentum=0.5), torch.ones(1, dtype=torch.float64), lambda *_: torch.tensor(2), 2
    )
    assert moved_P.item() == pytest.approx(0.5)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_differentiable_in_weights_and_gradients(rule: Optimizer) -> None:
    push_P = torch.linspace(0.3, 1, 8, dtype=torch.float64)

    def reached(weights_P: Tensor, push_P: Tensor) -> Tensor:
        return follow(rule, weights_P, lambda now_P, step: push_P * bumpy(now_P, step), 3)

    torch.autograd.gradcheck(reached, (start_P().requires_grad_(), push_P.requires_grad_()))


@pytest.mark.parametrize("rule", RULES)
def test_a_step_is_differentiable_in_the_state(rule: Optimizer) -> None:
    state = tuple(
        torch.linspace(0.5, 1, 8, dtype=torch.float64).requires_grad_()
        for _ in rule.start(start_P())
    )

    def stepped(*state: Tensor) -> tuple[Tensor, ...]:
        weights_P, after = rule.step(start_P(), state, bumpy(start_P(), 3), 3)
        return (weights_P, *after)

    torch.autograd.gradcheck(stepped, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", [Adam(lr=0.01), Sgd(lr=0.01)])
def test_a_gradient_of_zero_has_finite_derivatives_of_both_orders(
    rule: Optimizer, dtype: torch.dtype
) -> None:
    scale = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
    moved_P = follow(rule, torch.ones(2, dtype=dtype), lambda now_P, _: scale * now_P, 3)
    (first,) = torch.autograd.grad(moved_P.square().sum(), scale, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), scale)
    assert bool(first.isfinite().all()) and bool(second.isfinite().all())


def test_a_weight_without_gradient_stays_where_it_is() -> None:
    for rule in (Adam(lr=0.01), Sgd(lr=0.01)):
        weights_P = start_P()
        assert torch.equal(follow(rule, weights_P, lambda now_P, _: 0 * now_P, 3), weights_P)


def test_the_inputs_of_a_step_are_left_alone() -> None:
    for rule in (Adam(lr=0.01), Sgd(lr=0.01, weight_decay=0.1)):
        weights_P, grad_P = start_P(), bumpy(start_P(), 1)
        state = rule.start(weights_P)
        rule.step(weights_P, state, grad_P, 1)
        assert torch.equal(weights_P, start_P()) and torch.equal(grad_P, bumpy(start_P(), 1))
        assert all(not part.any() for part in state)


def test_a_rate_of_zero_and_a_decay_of_one_are_refused() -> None:
    for fields in ({"lr": 0}, {"lr": -1.0}, {"lr": 0.1, "beta1": 1.0}, {"lr": 0.1, "beta2": 1.0}):
        with pytest.raises(ValidationError):
            Adam.model_validate(fields)
    with pytest.raises(ValidationError):
        Sgd(lr=0.1, momentum=1.0)


def test_cosine_falls_from_one_to_zero() -> None:
    assert [cosine(step, 4) for step in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
