"""The plain programs: what the papers' formulas say, written with torch in the obvious way.

They share with the library the random draws, the augmentation and the first weights, so that both
compute the same numbers, and nothing else. Networks have the papers' convolution biases.

Shape suffixes: B images, C channels, H W pixels, K classes, N examples, P all weights in a vector.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from distill_datasets.runtime.draws import Draw
from distill_datasets.types import Batch
from distill_datasets.views.augment import Augment


def convnet(
    shape: tuple[int, int, int], classes: int, width: int, depth: int = 3, bias: bool = True
) -> nn.Sequential:
    """The papers' ConvNet: convolution with bias, instance norm, ReLU, average pooling."""
    channels, height, wide = shape
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=bias),
            nn.GroupNorm(width, width, affine=True),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
        channels = width
    features = width * (height // 2**depth) * (wide // 2**depth)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))


def set_weights(module: nn.Module, weights_P: Tensor) -> None:
    """Start from the library's weights, which have no biases before a norm; these start at zero."""
    dead = {id(layer.bias) for layer in module.modules() if isinstance(layer, nn.Conv2d)}
    own = list(module.parameters())
    if sum(parameter.numel() for parameter in own) == len(weights_P):
        dead = set()
    place = 0
    with torch.no_grad():
        for parameter in own:
            if id(parameter) in dead:
                parameter.zero_()
                continue
            piece = weights_P[place : place + parameter.numel()]
            parameter.copy_(piece.view_as(parameter))
            place += parameter.numel()
    assert place == len(weights_P)


def unrolled_gradient(
    module: nn.Module,
    show: Callable[[], Tensor],
    trained: Tensor,
    corners: Sequence[tuple[int, int]],
    targets_NK: Tensor,
    real: Batch,
    augment: Augment,
    draw: Draw,
    *,
    warm_up: int,
    window: int,
    batch: int,
    real_batch: int,
    lr: float,
) -> tuple[float, Tensor]:
    """RaT-BPTT (arXiv:2311.07025), algorithm 1, on the crops of a poster (arXiv:2403.12040).

    One graph through the whole window; Adam's state is carried from the warm-up into it.
    """
    side_h, side_w = real.images_BCHW.shape[2:]
    weights = {name: value.detach().clone() for name, value in module.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second = {name: torch.zeros_like(value) for name, value in weights.items()}
    for step in range(warm_up + window):
        tracked = step >= warm_up
        if not tracked or step == warm_up:
            weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
        rng = draw("inner", step)
        index = torch.arange(len(corners))
        if batch < len(corners):
            index = torch.randperm(len(corners), generator=rng)[:batch].sort().values
        poster_CHW = show() if tracked else show().detach()
        crops = [
            poster_CHW[:, y : y + side_h, x : x + side_w]
            for y, x in (corners[place] for place in index.tolist())
        ]
        images_BCHW = augment(torch.stack(crops), rng)
        logits_BK = functional_call(module, weights, (images_BCHW,))
        loss = F.cross_entropy(logits_BK, targets_NK[index])
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=tracked)
        rate = lr * (1 - 0.999 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        moved = {}
        for (name, value), grad in zip(weights.items(), found, strict=True):
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad * grad
            # without the tiny number the derivative of the root is infinite at dead weights
            root = (second[name] + 1e-30).sqrt()
            moved[name] = value - rate * first[name] / (root + 1e-8)
        weights = moved
    rng = draw("real")
    index = torch.randperm(len(real.images_BCHW), generator=rng)[:real_batch]
    index = index.to(real.images_BCHW.device)
    images_BCHW = augment(real.images_BCHW[index], rng)
    logits_BK = functional_call(module, weights, (images_BCHW,))
    loss = F.cross_entropy(logits_BK, real.targets_BK[index])
    (grad,) = torch.autograd.grad(loss, trained)
    return loss.item(), grad


def matched_gradient(
    module: nn.Sequential,
    show: Callable[[], Tensor],
    trained: Tensor,
    real_of_class: Sequence[Tensor],
    augment: Augment,
    draw: Draw,
    real_batch: int,
) -> tuple[float, Tensor]:
    """DM (arXiv:2110.04181), algorithm 1: mean embeddings of every class, one after another."""
    module.requires_grad_(False)
    embed = module[:-1]
    images_NCHW = show()
    loss = torch.zeros((), device=images_NCHW.device, dtype=images_NCHW.dtype)
    own = len(images_NCHW) // len(real_of_class)
    for label, of_class in enumerate(real_of_class):
        index = torch.randperm(len(of_class), generator=draw("real", label))[:real_batch]
        theirs = augment(of_class[index.to(of_class.device)], draw("augment", label), shared=True)
        ours = images_NCHW[label * own : (label + 1) * own]
        ours = augment(ours, draw("augment", label), shared=True)
        theirs_BD, ours_BD = embed(theirs).detach(), embed(ours)
        loss = loss + (theirs_BD.mean(dim=0) - ours_BD.mean(dim=0)).square().sum()
    (grad,) = torch.autograd.grad(loss, trained)
    return loss.item(), grad


def weights_gradient(
    module: nn.Sequential,
    show: Callable[[], Tensor],
    trained: Tensor,
    real_of_class: Sequence[Tensor],
    augment: Augment,
    draw: Draw,
    real_batch: int,
) -> tuple[float, Tensor]:
    """DSA (arXiv:2102.08259), algorithm 1: the gradients of every class, one graph for all."""
    weights, images_NCHW = list(module.parameters()), show()
    loss = torch.zeros((), device=images_NCHW.device, dtype=images_NCHW.dtype)
    own = len(images_NCHW) // len(real_of_class)
    for label, of_class in enumerate(real_of_class):
        index = torch.randperm(len(of_class), generator=draw("real", label))[:real_batch]
        sides = (
            (of_class[index.to(of_class.device)], False),
            (images_NCHW[label * own : (label + 1) * own], True),
        )
        grads = []
        for images, graph in sides:
            images = augment(images, draw("augment", label), shared=True)
            labels = torch.full((len(images),), label, device=images.device)
            entropy = F.cross_entropy(module(images), labels)
            grads.append(torch.autograd.grad(entropy, weights, create_graph=graph))
        for theirs, ours in zip(*grads, strict=True):
            if ours.dim() > 1:
                rows, others = ours.flatten(1), theirs.flatten(1)
                cosine = (rows * others).sum(dim=1) / (rows.norm(dim=1) * others.norm(dim=1) + 1e-6)
                loss = loss + (1 - cosine).sum()
    (grad,) = torch.autograd.grad(loss, trained)
    return loss.item(), grad


def regression_gradient(
    module: nn.Sequential,
    show: Callable[[], Tensor],
    trained: Tensor,
    targets_NK: Tensor,
    real: Batch,
    augment: Augment,
    draw: Draw,
    *,
    real_batch: int,
    ridge: float,
) -> tuple[float, Tensor]:
    """FRePo (arXiv:2206.00719), equation 6: ridge regression from distilled to real features."""
    embed = module[:-1].requires_grad_(False)
    shown_ND = embed(augment(show(), draw("augment")))
    rng = draw("real")
    index_B = torch.randperm(len(real.images_BCHW), generator=rng)[:real_batch]
    index_B = index_B.to(real.images_BCHW.device)
    with torch.no_grad():
        real_BD = embed(augment(real.images_BCHW[index_B], rng))
    kernel_NN = shown_ND @ shown_ND.T
    added = ridge * kernel_NN.trace() / len(kernel_NN)
    kernel_NN = kernel_NN + added * torch.eye(len(kernel_NN)).to(kernel_NN)
    ours_NK, theirs_BK = (
        each - each.mean(dim=1, keepdim=True) for each in (targets_NK, real.targets_BK[index_B])
    )
    predicted_BK = real_BD @ shown_ND.T @ torch.linalg.solve(kernel_NN, ours_NK)
    loss = 0.5 * (predicted_BK - theirs_BK).square().sum() / real_batch
    (grad,) = torch.autograd.grad(loss, trained)
    return loss.item(), grad


def trajectory_gradient(
    module: nn.Module,
    show: Callable[[], Tensor],
    trained: Tensor,
    targets_NK: Tensor,
    target_P: Tensor,
    augment: Augment,
    draw: Draw,
    *,
    steps: int,
    size: float,
) -> tuple[float, Tensor]:
    """MTT (arXiv:2203.11932), algorithm 1: one graph through all steps on all images.

    The module has no biases before a norm, so that its weights are those of the expert.
    """
    names = [name for name, _ in module.named_parameters()]
    shapes = [weight.shape for weight in module.parameters()]
    start_P = nn.utils.parameters_to_vector(module.parameters()).detach()
    weights_P = start_P.requires_grad_()
    for step in range(steps):
        pieces = torch.split(weights_P, [shape.numel() for shape in shapes])
        named = {
            name: piece.view(shape)
            for name, piece, shape in zip(names, pieces, shapes, strict=True)
        }
        images_NCHW = augment(show(), draw("inner", step))
        loss = F.cross_entropy(functional_call(module, named, (images_NCHW,)), targets_NK)
        (grad_P,) = torch.autograd.grad(loss, weights_P, create_graph=True)
        weights_P = weights_P - size * grad_P
    away = (start_P.detach() - target_P).square().sum()
    loss = (weights_P - target_P).square().sum() / away
    (grad,) = torch.autograd.grad(loss, trained)
    return loss.item(), grad


def train_one(
    module: nn.Module, examples: Batch, orders: Sequence[Tensor], lr: float, momentum: float
) -> nn.Module:
    """Supervised training as in every tutorial: one student, one batch after another."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=momentum)
    for index_B in orders:
        logits_BK = module(examples.images_BCHW[index_B])
        loss = F.cross_entropy(logits_BK, examples.targets_BK[index_B])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module
