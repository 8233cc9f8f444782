"""What pulls a sample while it is made, and refines it afterwards: each a function of tensors.

The flow of `models.generator` is at x_t, at time t from noise (0) to latent (1), and heads for the
latent z. Published guidance adds to a step of diffusion in units of its deviation sigma_t, which on
the straight way from noise is 1 - t. A scale of 0 adds zeros.

Shape suffixes: B samples, L channels and h w sides of a latent, D values of one, M latents of
others, N images, P weights of a network, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.models.generator import Velocity


def mode(clean_BLhw: Tensor, modes_BLhw: Tensor, time: float, scale: float, stop: float) -> Tensor:
    """Towards a mode of the class each, until the time `stop`: scale (1 - t) (mode - z).

    Source: MGD3 (arXiv:2505.18963), mode guidance and stop guidance.
    """
    if time >= stop:
        return torch.zeros_like(clean_BLhw)
    return scale * (1 - time) * (modes_BLhw - clean_BLhw)


def deviation(x_BLhw: Tensor, others_MLhw: Tensor, time: float, scale: float) -> Tensor:
    """Away from the nearest of the others, by angle: -scale (1 - t) gradient of max cos(x_t, m).

    The others are the samples that are finished, and the rest of this batch at the same time.

    Source: IGD (openreview.net, 0whx8MhysK), the deviation guidance, after Minimax's diversity.
    """
    with torch.enable_grad():
        x = x_BLhw.detach().requires_grad_()
        own_BD, finished_MD = F.normalize(x.flatten(1)), F.normalize(others_MLhw.flatten(1))
        beside_BB = own_BD @ own_BD.detach().T - 2 * torch.eye(len(x), device=x.device)
        nearest_B = torch.cat([beside_BB, own_BD @ finished_MD.T], dim=1).amax(dim=1)
        (gradient,) = torch.autograd.grad(nearest_B.sum(), x)
    return -scale * (1 - time) * gradient


def represent(clean_BLhw: Tensor, real_MLhw: Tensor, time: float, scale: float) -> Tensor:
    """Towards the real latent that is farthest by angle: scale (1 - t) gradient of min cos(z, m).

    Source: Minimax diffusion (arXiv:2311.15529), representativeness, while sampling in place of
    fine-tuning.
    """
    with torch.enable_grad():
        clean = clean_BLhw.detach().requires_grad_()
        cosines_BM = F.normalize(clean.flatten(1)) @ F.normalize(real_MLhw.flatten(1)).T
        (gradient,) = torch.autograd.grad(cosines_BM.amin(dim=1).sum(), clean)
    return scale * (1 - time) * gradient


def influence(
    x_BLhw: Tensor,
    images_of: Callable[[Tensor], Tensor],
    networks: Sequence[nn.Module],
    real: Sequence[Sequence[Tensor]],
    label: int,
    time: float,
    scale: float,
) -> Tensor:
    """Towards images that move networks as real ones do: scale (1 - t) gradient of cos(g, g_real).

    `images_of` shows what x_t heads for as the networks see it; `real` are their gradients on real
    images of the class. Every sample is pulled for itself.

    Source: IGD (openreview.net, 0whx8MhysK), the influence guidance.
    """
    pulls = []
    for x_1Lhw in torch.split(x_BLhw, 1):
        with torch.enable_grad():
            x = x_1Lhw.detach().requires_grad_()
            images = images_of(x)
            alike = [
                likeness(gradient_of(each, images, label, create_graph=True), own)
                for each, own in zip(networks, real, strict=True)
            ]
            pulls.append(torch.autograd.grad(torch.stack(alike).sum(), x)[0])
    return scale * (1 - time) * torch.cat(pulls)


def gradient_of(
    network: nn.Module, images_BCHW: Tensor, label: int, *, create_graph: bool = False
) -> list[Tensor]:
    """The gradient of the cross-entropy of images of one class, weight by weight."""
    # the network is others' too: its own weights stay frozen
    weights = {
        name: weight.detach().requires_grad_() for name, weight in network.named_parameters()
    }
    targets_B = torch.full((len(images_BCHW),), label, device=images_BCHW.device)
    with torch.enable_grad():
        loss = F.cross_entropy(torch.func.functional_call(network, weights, images_BCHW), targets_B)
        return list(torch.autograd.grad(loss, [*weights.values()], create_graph=create_graph))


def likeness(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The cosine between two gradients of all weights."""
    pairs = list(zip(one, other, strict=True))
    product = torch.stack([(a * b).sum() for a, b in pairs]).sum()
    squares = [torch.stack([each.square().sum() for each in side]).sum() for side in (one, other)]
    return product / (squares[0] * squares[1]).sqrt().clamp(min=1e-12)


def noise_error(
    latents_BLhw: Tensor, noise_BLhw: Tensor, times_B: Tensor, labels_B: Tensor, velocity: Velocity
) -> Tensor:
    """What a flow does not find of the noise, e - (x_t - t v(x_t)), where x_t = (1 - t) e + t z."""
    time = times_B[:, None, None, None]
    x_BLhw = (1 - time) * noise_BLhw + time * latents_BLhw
    return noise_BLhw - (x_BLhw - time * velocity(x_BLhw, times_B, labels_B))


def refined(
    latents_BLhw: Tensor,
    noise_BLhw: Tensor,
    times_SB: Tensor,
    labels_B: Tensor,
    velocity: Velocity,
    lr: float,
    worst: float,
) -> Tensor:
    """Latents in which the flow finds the noise better: steps of Adam, each latent for itself.

    A step lowers the mean square of the error at one time, and `worst` times its largest value.

    Source: CaO2 (arXiv:2506.22637), latent optimization.
    """
    with torch.enable_grad():
        z_BLhw = latents_BLhw.detach().clone().requires_grad_()
        adam = torch.optim.Adam([z_BLhw], lr=lr)
        for times_B in times_SB:
            error = noise_error(z_BLhw, noise_BLhw, times_B, labels_B, velocity).flatten(1)
            loss_B = error.square().mean(dim=1) + worst * error.abs().amax(dim=1)
            (z_BLhw.grad,) = torch.autograd.grad(loss_B.sum(), z_BLhw)
            adam.step()
    return z_BLhw.detach()
