"""The space of foreign values: how floats of unknown origin become pixels that can be shown.

Shape suffixes: N training examples, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from distill_datasets.data.normalization import SPAN, InputSpace, Normalization, count_values
from distill_datasets.errors import ArtifactError, RecipeError, did_you_mean, shown
from distill_datasets.media.image import to_bytes

if TYPE_CHECKING:
    from torch import Tensor


class MeanStd(NamedTuple):
    """What was subtracted from pixels in [0, 1], and what they were divided by, per channel."""

    mean: list[float]
    std: list[float]


_IMAGENET = MeanStd([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
LIKE = {
    "mnist": MeanStd([0.1307], [0.3081]),
    "fashion-mnist": MeanStd([0.2861], [0.3530]),
    "svhn": MeanStd([0.4377, 0.4438, 0.4728], [0.1980, 0.2010, 0.1970]),
    "cifar10": MeanStd([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]),
    "cifar100": MeanStd([0.5071, 0.4866, 0.4409], [0.2673, 0.2564, 0.2762]),
    "tiny-imagenet": _IMAGENET,
    "imagenet": _IMAGENET,
}
"""As the code of DC, and what was built on it, normalizes these datasets."""
PIXELS = "pixels"
"""The name for values that are pixels in [0, 1] already."""
WHITENED = MeanStd([0.5], [])
"""What stands for values that were whitened by a matrix that nobody has; see `to_values`."""
MOST_OUTSIDE = 0.5
"""A share of values beyond [0, 1] above which the normalization is taken for a wrong one."""
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SpacedImages:
    """Images as they are published, and the space in which students see them.

    Attributes:
        images_NCHW: uint8.
        exact_NCHW: what students saw, float32; None where 8 bits are exact.
        mean: with `std`, of the space of the students.
        std: see `mean`.
        note: how they were found, a sentence.
        kind: `mean_std`, or `whitened` where real images would have to be whitened alike.
    """

    images_NCHW: Tensor
    exact_NCHW: Tensor | None
    mean: list[float]
    std: list[float]
    note: str
    kind: str = "mean_std"


def mean_std(like: str | None, mean: list[float] | None, std: list[float] | None) -> MeanStd | None:
    """The normalization that a user names; None where none is named.

    Raises:
        RecipeError: the name is unknown, or numbers do not belong together.
    """
    if like is not None:
        if mean is not None or std is not None:
            raise RecipeError("--like: got it beside --mean or --std; give one or the other")
        if like == PIXELS:
            return MeanStd([], [])
        if like == "whitened":
            return WHITENED
        if like not in LIKE:
            names = [*LIKE, PIXELS, "whitened"]
            raise RecipeError(f"--like: no normalization {like!r}; {did_you_mean(like, names)}")
        return LIKE[like]
    if mean is None and std is None:
        return None
    if mean is None or std is None or len(mean) != len(std) or min(std) <= 0:
        raise RecipeError(
            f"--mean and --std: got {mean} and {std}, expected a number of each for every channel, "
            "of pixels in [0, 1], std above 0"
        )
    return MeanStd(mean, std)


def numbers_of(text: str | None, option: str) -> list[float] | None:
    """Numbers as a user writes them, `0.49,0.48,0.45`; None for None.

    Raises:
        RecipeError: they are no numbers.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise RecipeError(
            f"{option}: got {shown(text)}, expected a number for every channel, such as "
            "0.49,0.48,0.45"
        ) from error


def to_values(images_NCHW: Tensor, named: MeanStd | None, where: str) -> SpacedImages:
    """Foreign images as published ones.

    Args:
        images_NCHW: uint8, or floats in the space that students saw.
        named: the normalization of that space, empty for pixels; None where nobody names one.
        where: what is imported, for errors.

    Raises:
        ArtifactError: the space is not known, or what is said of it cannot be true.
    """
    channels = images_NCHW.shape[1]
    if named == WHITENED:
        return _whitened(images_NCHW, where)
    if named is not None and named.mean and len(named.mean) != channels:
        raise ArtifactError(
            f"{where}: a mean and a deviation of {len(named.mean)} channels for images of "
            f"{channels}; give --mean and --std with {channels} of each"
        )
    if images_NCHW.dtype == torch.uint8:
        if named is not None and named.mean:
            return SpacedImages(
                images_NCHW, None, *named, "8-bit images; mean and std as they were named"
            )
        return SpacedImages(images_NCHW, None, *_fitted(images_NCHW), f"8-bit images; {_FITTED}")
    low, high = images_NCHW.min().item(), images_NCHW.max().item()
    if named is None:
        return _guessed(images_NCHW, low, high, where)
    if not named.mean:
        _check_pixels(images_NCHW, low, high, where, "are no pixels in [0, 1]", "--mean and --std")
        return _of_pixels(images_NCHW, "pixels in [0, 1], as they were named")
    pixels_NCHW = InputSpace(torch.tensor(named.mean), torch.tensor(named.std)).to_pixels(
        images_NCHW
    )
    low, high = pixels_NCHW.min().item(), pixels_NCHW.max().item()
    outside = _check_pixels(
        pixels_NCHW, low, high, where, "are no pixels after (value * std + mean)", "others"
    )
    beyond = (
        f"; {100 * outside:.1f} % lie beyond [0, 1] and are clipped in 8 bits" if outside else ""
    )
    note = f"floats, made pixels from {low:.3g} to {high:.3g} by the mean and std named{beyond}"
    return SpacedImages(to_bytes(pixels_NCHW), images_NCHW, *named, note)


_FITTED = "mean and std are those of these images, as the authors' are not known"


def _guessed(images_NCHW: Tensor, low: float, high: float, where: str) -> SpacedImages:
    if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
        return _of_pixels(images_NCHW, "floats within [0, 1], taken for pixels")
    whole = low >= 0 and high <= 255 and torch.equal(images_NCHW, images_NCHW.round())
    if whole:
        bytes_NCHW = images_NCHW.byte()
        return SpacedImages(
            bytes_NCHW, None, *_fitted(bytes_NCHW), f"whole numbers from 0 to 255; {_FITTED}"
        )
    raise ArtifactError(
        f"{where}: values from {low:.3g} to {high:.3g} were normalized, and the files do not say "
        f"how; give --like with one of {', '.join(LIKE)}, or --mean and --std of the authors' "
        "code (pixels are value * std + mean). Whitened (ZCA) values cannot be shown so: of MTT "
        "and DATM import images_zca_N.pt with --like pixels"
    )


def _of_pixels(pixels_NCHW: Tensor, note: str) -> SpacedImages:
    images_NCHW = to_bytes(pixels_NCHW)
    space = _fitted(images_NCHW)
    exact_NCHW = InputSpace(torch.tensor(space.mean), torch.tensor(space.std)).to_student(
        pixels_NCHW
    )
    same = torch.equal(images_NCHW.float() / 255, pixels_NCHW)
    return SpacedImages(images_NCHW, None if same else exact_NCHW, *space, f"{note}; {_FITTED}")


def _whitened(images_NCHW: Tensor, where: str) -> SpacedImages:
    """Whitened values as the published format shows them: `SPAN` root mean squares to each side."""
    if images_NCHW.dtype == torch.uint8:
        raise ArtifactError(f"{where}: 8-bit images are not whitened; leave --like out")
    std_C = 1 / (2 * SPAN * images_NCHW.square().mean(dim=(0, 2, 3)).clamp(min=1e-12).sqrt())
    space = MeanStd([0.5] * len(std_C), std_C.tolist())
    pixels_NCHW = InputSpace(torch.tensor(space.mean), std_C).to_pixels(images_NCHW)
    note = (
        f"whitened values, shown with {2 * SPAN:g} root mean squares from black to white; the "
        "matrix is not known, so that real images cannot be measured beside them"
    )
    return SpacedImages(to_bytes(pixels_NCHW), images_NCHW, *space, note, "whitened")


def _check_pixels(
    pixels_NCHW: Tensor, low: float, high: float, where: str, what: str, give: str
) -> float:
    """The share of values beyond [0, 1]; refuses one that no clipping of pixels explains."""
    beyond = (pixels_NCHW < -_TOLERANCE) | (pixels_NCHW > 1 + _TOLERANCE)
    share = beyond.float().mean().item()
    if share > MOST_OUTSIDE:
        raise ArtifactError(
            f"{where}: values {what}: they go from {low:.3g} to {high:.3g}, and {100 * share:.0f} "
            f"% lie beyond [0, 1]; give {give}: those that the authors' code normalizes with"
        )
    return share


def _fitted(images_NCHW: Tensor) -> MeanStd:
    found = Normalization.of_counts(count_values(images_NCHW), len(images_NCHW))
    return MeanStd(found.display_mean_C.tolist(), found.display_std_C.tolist())
