"""Images paired with real ones of their class, as the features of a trained network see them.

Shape suffixes: B images, C channels, H W pixels, K classes, D features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from distill_datasets.models.architecture import last_linear

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.networks.teachers import BatchNormProbe
    from distill_datasets.runtime.precision import Precision


def partners(real: RealData, targets_BK: Tensor, rng: torch.Generator) -> Tensor:
    """A random real image of the class of every image, (B, C, H, W) as networks see it."""
    rows = []
    for label in targets_BK.argmax(dim=1).tolist():
        own_N = real.rows_of_class[label]
        rows.append(own_N[int(torch.randint(len(own_N), (), generator=rng))])
    return real.select(torch.stack(rows)).images_BCHW


def features(probe: BatchNormProbe, images_BCHW: Tensor, precision: Precision) -> Tensor:
    """What enters the last linear layer of a teacher, (B, D), in float32; differentiable."""
    found = last_linear(probe.module)
    assert found is not None, "a teacher without a linear layer was refused"
    kept = list[torch.Tensor]()
    handle = found[1].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        probe(images_BCHW, precision)
    finally:
        handle.remove()
    return kept[0].float()


def pair_loss(
    probe: BatchNormProbe, images_BCHW: Tensor, partners_BCHW: Tensor, precision: Precision
) -> Tensor:
    """The squared distance of features of each image and its partner, summed over features.

    Args:
        probe: a teacher.
        images_BCHW: in the student's input space; the result is differentiable in them alone.
        partners_BCHW: real images, in the same view.
        precision: of the network.

    Returns:
        The mean over images.

    Source: the objective of CIM, |f(x_real) - f(x)|^2 of paired crops.
    """
    with torch.no_grad():
        theirs_BD = features(probe, partners_BCHW, precision)
    return (features(probe, images_BCHW, precision) - theirs_BD).square().sum(dim=1).mean()
