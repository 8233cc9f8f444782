"""How students fare on images that are attacked or corrupted.

Attacks are white-box, on the student itself, in pixel space: perturbations are at most eps in every
pixel of [0, 1] and the images stay in [0, 1]. Corruptions are eight simple ones at five severities;
all but rotation have the severities that are used for 32 px.

What `probed` returns of one student, accuracies on the same images:

    clean            as they are
    fgsm, pgd        by the size of eps in 255ths, "1", "2", "4", "8"
    corruptions      by the name, a list over the severities
    corrupted        mean over all corruptions and severities

Source: FGSM (arXiv:1412.6572); PGD (arXiv:1706.06083); corruptions (arXiv:1903.12261).

Shape suffixes: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from distill_datasets.media.image import jpeg, open_image, to_bytes, to_pixels
from distill_datasets.training.intervals import Interval

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.normalization import InputSpace
    from distill_datasets.runtime.draws import Draw

EPS = (1, 2, 4, 8)
"""Sizes of attacks, in 255ths."""
PGD_STEPS = 10
SEVERITIES = 5

See = Callable[["Tensor"], "Tensor"]
"""Pixels in [0, 1] to what a network takes."""


def fgsm(module: nn.Module, see: See, pixels_BCHW: Tensor, labels_B: Tensor, eps: float) -> Tensor:
    """Pixels after one step of size eps along the sign of the gradient of the loss."""
    return _stepped(module, see, pixels_BCHW, pixels_BCHW, labels_B, eps, eps)


def pgd(
    module: nn.Module,
    see: See,
    pixels_BCHW: Tensor,
    labels_B: Tensor,
    eps: float,
    rng: torch.Generator | None,
    steps: int = PGD_STEPS,
    size: float | None = None,
) -> Tensor:
    """Pixels after steps of eps / 4 that stay within eps of where they were.

    Args:
        module: what is attacked, in eval mode.
        see: makes its input of pixels.
        pixels_BCHW: in [0, 1].
        labels_B: their classes.
        eps: largest change of a pixel.
        rng: draws where the attack starts within eps; None starts at the images.
        steps: how many.
        size: of a step, in place of eps / 4.
    """
    moved_BCHW = pixels_BCHW
    if rng is not None:
        noise_BCHW = 2 * torch.rand(pixels_BCHW.shape, generator=rng) - 1
        moved_BCHW = (pixels_BCHW + eps * noise_BCHW.to(pixels_BCHW)).clamp(0, 1)
    for _ in range(steps):
        moved_BCHW = _stepped(
            module, see, moved_BCHW, pixels_BCHW, labels_B, eps / 4 if size is None else size, eps
        )
    return moved_BCHW


def _stepped(
    module: nn.Module,
    see: See,
    moved_BCHW: Tensor,
    pixels_BCHW: Tensor,
    labels_B: Tensor,
    size: float,
    eps: float,
) -> Tensor:
    """One step uphill, back into the cube of eps around the images and into [0, 1]."""
    moved_BCHW = moved_BCHW.detach().requires_grad_(True)
    loss = F.cross_entropy(module(see(moved_BCHW)), labels_B, reduction="sum")
    (grad_BCHW,) = torch.autograd.grad(loss, moved_BCHW)
    stepped_BCHW = moved_BCHW.detach() + size * grad_BCHW.sign()
    low_BCHW, high_BCHW = pixels_BCHW - eps, pixels_BCHW + eps
    return torch.minimum(torch.maximum(stepped_BCHW, low_BCHW), high_BCHW).clamp(0, 1)


def noise(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """Gaussian noise."""
    std = (0.04, 0.06, 0.08, 0.09, 0.10)[severity]
    return pixels_BCHW + std * torch.randn(pixels_BCHW.shape, generator=rng)


def impulse(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """Salt and pepper: a share of the values becomes black or white."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    drawn_BCHW = torch.rand(pixels_BCHW.shape, generator=rng)
    salted_BCHW = torch.where(drawn_BCHW < share / 2, 0.0, pixels_BCHW)
    return torch.where(drawn_BCHW > 1 - share / 2, 1.0, salted_BCHW)


def blur(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """Gaussian blur."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity]
    reach_T = torch.arange(-3.0, 4.0)
    weight_T = (-0.5 * (reach_T / sigma) ** 2).exp()
    weight_T = weight_T / weight_T.sum()
    channels = pixels_BCHW.shape[1]
    padded = F.pad(pixels_BCHW, (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(padded, weight_T.view(1, 1, 7, 1).repeat(channels, 1, 1, 1), groups=channels)
    return F.conv2d(rows, weight_T.view(1, 1, 1, 7).repeat(channels, 1, 1, 1), groups=channels)


def brightness(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """All pixels brighter by the same amount."""
    return pixels_BCHW + (0.05, 0.1, 0.15, 0.2, 0.3)[severity]


def contrast(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """Pixels nearer to the mean of their channel."""
    mean_BC11 = pixels_BCHW.mean(dim=(2, 3), keepdim=True)
    return mean_BC11 + (0.75, 0.5, 0.4, 0.3, 0.15)[severity] * (pixels_BCHW - mean_BC11)


def pixelate(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """Shrunk by areas and enlarged again without smoothing."""
    share, sides = (0.95, 0.9, 0.85, 0.75, 0.65)[severity], pixels_BCHW.shape[2:]
    small = [max(1, int(share * side)) for side in sides]
    return F.interpolate(F.interpolate(pixels_BCHW, small, mode="area"), tuple(sides))


def compression(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """JPEG at a low quality."""
    quality, channels = (80, 65, 58, 50, 40)[severity], pixels_BCHW.shape[1]
    files = [jpeg(image_CHW, quality) for image_CHW in to_bytes(pixels_BCHW)]
    read = [to_pixels(open_image(file), 3 if channels == 3 else 1, None) for file in files]
    return torch.stack(read).float() / 255


def rotation(pixels_BCHW: Tensor, severity: int, rng: torch.Generator) -> Tensor:
    """Turned by an angle to one side or the other; corners repeat the edge."""
    angle = torch.tensor((5.0, 10.0, 15.0, 20.0, 30.0)[severity]).deg2rad()
    side_B = torch.where(torch.rand(len(pixels_BCHW), generator=rng) < 0.5, -1.0, 1.0)
    cosine_B, sine_B = angle.cos().expand(len(side_B)), side_B * angle.sin()
    oblong = pixels_BCHW.shape[2] / pixels_BCHW.shape[3]
    zero_B = torch.zeros_like(cosine_B)
    turn_B23 = torch.stack(
        [cosine_B, -sine_B * oblong, zero_B, sine_B / oblong, cosine_B, zero_B], dim=1
    ).view(-1, 2, 3)
    grid = F.affine_grid(turn_B23, list(pixels_BCHW.shape), align_corners=False)
    return F.grid_sample(pixels_BCHW, grid, padding_mode="border", align_corners=False)


CORRUPTIONS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    each.__name__: each
    for each in (noise, impulse, blur, brightness, contrast, pixelate, compression, rotation)
}
"""By the name: pixels of the CPU in [0, 1], a severity from 0 on, and a generator."""


def probed(
    module: nn.Module,
    space: InputSpace,
    images_NCHW: Tensor,
    labels_N: Tensor,
    draw: Draw,
    at_once: int,
) -> dict[str, Any]:
    """The accuracy of a student on images as they are, attacked and corrupted.

    Args:
        module: the student.
        space: its input space, an affine of the pixels.
        images_NCHW: 8-bit test images.
        labels_N: their classes, on the student's device.
        draw: starts of attacks, noise and angles.
        at_once: images of a batch.
    """
    module.eval()
    device = labels_N.device
    pixels_NCHW = images_NCHW.cpu().float() / 255
    parts = (torch.split(each, at_once) for each in (pixels_NCHW, labels_N))
    sizes = list(zip(*parts, strict=True))

    def asked(change: Callable[[int, Tensor, Tensor], Tensor]) -> float:
        right = 0
        for number, (pixels_BCHW, labels_B) in enumerate(sizes):
            moved_BCHW = change(number, pixels_BCHW.to(device), labels_B)
            with torch.no_grad():
                predicted_B = module(space.to_student(moved_BCHW)).argmax(dim=1)
            right += int((predicted_B == labels_B).sum())
        return right / len(labels_N)

    def attack(eps: int, start: bool) -> Callable[[int, Tensor, Tensor], Tensor]:
        def change(number: int, pixels_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            if not start:
                return fgsm(module, space.to_student, pixels_BCHW, labels_B, eps / 255)
            rng = draw("pgd", eps, number)
            return pgd(module, space.to_student, pixels_BCHW, labels_B, eps / 255, rng)

        return change

    def corrupt(name: str, severity: int) -> Callable[[int, Tensor, Tensor], Tensor]:
        def change(number: int, pixels_BCHW: Tensor, labels_B: Tensor) -> Tensor:
            rng = draw(name, severity, number)
            return CORRUPTIONS[name](pixels_BCHW.cpu(), severity, rng).clamp(0, 1).to(device)

        return change

    corruptions = {
        name: [asked(corrupt(name, severity)) for severity in range(SEVERITIES)]
        for name in CORRUPTIONS
    }
    every = [value for values in corruptions.values() for value in values]
    return {
        "clean": asked(lambda number, pixels_BCHW, labels_B: pixels_BCHW),
        "fgsm": {str(eps): asked(attack(eps, start=False)) for eps in EPS},
        "pgd": {str(eps): asked(attack(eps, start=True)) for eps in EPS},
        "corruptions": corruptions,
        "corrupted": statistics.fmean(every),
    }


def robustness(key: str, images: int, students: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the students of a row together withstand.

    Returns:
        `key`, `images`, `students`; of `clean` and `corrupted` an interval, of `fgsm` and `pgd` one
        by the size, of `corruptions` a list over severities by the name; `relative`, an interval of
        corrupted / clean.
    """

    def interval(values: Sequence[float]) -> dict[str, float | None]:
        return Interval.of(values).as_json()

    def each(name: str) -> Iterator[tuple[str, dict[str, float | None]]]:
        for size in map(str, EPS):
            yield size, interval([student[name][size] for student in students])

    return {
        "key": key,
        "images": images,
        "students": len(students),
        "clean": interval([student["clean"] for student in students]),
        "fgsm": dict(each("fgsm")),
        "pgd": dict(each("pgd")),
        "corruptions": {
            name: [
                interval([student["corruptions"][name][severity] for student in students])
                for severity in range(SEVERITIES)
            ]
            for name in CORRUPTIONS
        },
        "corrupted": interval([student["corrupted"] for student in students]),
        "relative": interval(
            [student["corrupted"] / max(student["clean"], 1e-9) for student in students]
        ),
    }
