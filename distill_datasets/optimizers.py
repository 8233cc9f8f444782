"""Optimizers of the inner loop: one differentiable update of all weights in one vector.

The same section also makes the equal torch optimizer, so that a student is trained by the rule that
the distilled set was made for.

Shape suffixes: P all weights of a network in one vector, T step sizes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field

from distill_datasets.config import Part

if TYPE_CHECKING:
    from torch import Tensor

State = tuple["Tensor", ...]


def cosine(step: float, steps: float) -> float:
    """The factor on a step size that falls from 1 to 0 along half a cosine.

    Source: SGDR (arXiv:1608.03983), equation 5, without restarts.
    """
    return 0.5 * (1 + math.cos(math.pi * step / steps))


class TrainingRule(Part, ABC):
    """A rule that trains a network by one of torch's optimizers."""

    lr: float = Field(gt=0, description="step size")

    @abstractmethod
    def torch_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of torch that follows this rule."""


class Optimizer(TrainingRule, ABC):
    """A rule that moves weights along a gradient and carries state from step to step."""

    @abstractmethod
    def start(self, weights_P: Tensor) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(
        self, weights_P: Tensor, state: State, grad_P: Tensor, step: int
    ) -> tuple[Tensor, State]:
        """One update, differentiable in the weights, the state and the gradient.

        Args:
            weights_P: weights before the update.
            state: what `start` or the previous `step` returned.
            grad_P: gradient of the inner loss at `weights_P`.
            step: number of this step since `start`, from 1.

        Returns:
            Weights and state after the update.
        """


class Adam(Optimizer):
    """Adam; epsilon is added after the square root, the bias corrections are in the step size.

    torch's own adds epsilon after the bias correction, which differs only where gradients are below
    about a hundred times epsilon.
    """

    paper: ClassVar[str] = "Adam, arXiv:1412.6980"
    name: Literal["adam"] = "adam"
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")

    def start(self, weights_P: Tensor) -> State:
        return torch.zeros_like(weights_P), torch.zeros_like(weights_P)

    def step(
        self, weights_P: Tensor, state: State, grad_P: Tensor, step: int
    ) -> tuple[Tensor, State]:
        first_P, second_P = state
        first_P = self.beta1 * first_P + (1 - self.beta1) * grad_P
        second_P = self.beta2 * second_P + (1 - self.beta2) * grad_P * grad_P
        rate = self.lr * (1 - self.beta2**step) ** 0.5 / (1 - self.beta1**step)
        # The derivative of a root at exactly zero is infinite and a dead unit would make it NaN
        # (meta-gradients of `higher` fail so); 1e-30 is far below epsilon squared.
        root_P = (second_P + 1e-30).sqrt()
        return weights_P - rate * first_P / (root_P + self.epsilon), (first_P, second_P)

    def torch_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            parameters, self.lr, (self.beta1, self.beta2), self.epsilon, fused=True
        )


class Sgd(Optimizer):
    """Gradient descent with momentum and weight decay, in torch's convention."""

    paper: ClassVar[str] = "SGD with momentum, doi:10.1016/0041-5553(64)90137-5"
    name: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1, description="decay of the velocity")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty added to the gradient")

    def start(self, weights_P: Tensor) -> State:
        return (torch.zeros_like(weights_P),)

    def step(
        self, weights_P: Tensor, state: State, grad_P: Tensor, step: int
    ) -> tuple[Tensor, State]:
        velocity_P = self.momentum * state[0] + grad_P + self.weight_decay * weights_P
        return weights_P - self.lr * velocity_P, (velocity_P,)

    def torch_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay, fused=True
        )


class AdamW(TrainingRule):
    """Adam with decoupled weight decay, for students and teachers.

    Weights of one dimension (biases, norms) do not decay, as in the programs of the decoupled
    family. What is one vector of all weights does not show them, so loops that are differentiated
    take adam or sgd.
    """

    paper: ClassVar[str] = "AdamW, arXiv:1711.05101"
    name: Literal["adamw"] = "adamw"
    beta1: float = Field(default=0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="decay of the second moment")
    epsilon: float = Field(default=1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(
        default=0.01,
        ge=0,
        description="share of a weight, times the step size, that a step takes away; of weights "
        "with more than one dimension",
    )

    def torch_optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        every = list(parameters)
        groups: list[dict[str, Any]] = [
            {"params": [weight for weight in every if weight.ndim > 1]},
            {"params": [weight for weight in every if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            self.lr,
            (self.beta1, self.beta2),
            self.epsilon,
            self.weight_decay,
            fused=True,
        )
