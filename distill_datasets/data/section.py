"""The recipe's `source` section: which images are distilled, and how they are read."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from distill_datasets.data.decoded import Sampling
from distill_datasets.data.normalization import Kind
from distill_datasets.data.reading import Channels
from distill_datasets.types import Section, Shape

CHANNELS: dict[str, Channels | None] = {"auto": None, "gray": 1, "rgb": 3}
Name = Annotated[str, StringConstraints(min_length=1)]


class Expected(Section):
    """What a dataset that is not at hand looks like."""

    classes: int = Field(ge=2, description="number of classes that are distilled")
    rows: int = Field(gt=0, description="training images")
    channels: Channels = 3
    side: int | None = Field(
        default=None, gt=0, description="height and width in pixels; null: source.resolution"
    )


class Source(Section):
    """Which images are distilled, and how they are read."""

    dataset: Name = Field(description="Hub id, local path or embedded:uci-digits")
    config: Name | None = Field(default=None, description="config (subset) of the dataset")
    revision: Name | None = Field(default=None, description="Hub branch, tag or commit")
    train_split: Name | None = Field(default=None, description="default: train")
    test_split: Name | None = Field(
        default=None,
        description="default: test, validation, valid or val; else a part of train is cut off",
    )
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="share of each class cut off when no split is for test"
    )
    image_column: Name | None = Field(default=None, description="default: the only Image column")
    label_column: Name | None = Field(
        default=None, description="default: the only ClassLabel column, or one called label or so"
    )
    resolution: int | None = Field(
        default=None, gt=0, description="side in pixels; None keeps the images' own size"
    )
    channels: Literal["auto", "gray", "rgb"] = "auto"
    classes: list[str | int] | None = Field(
        default=None, description="names or integers of the classes to keep, in the new order"
    )
    limit: int | None = Field(default=None, gt=0, description="rows drawn from each split")
    imbalance: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="make the training split long-tailed: the images of the last class as a share "
        "of those of the first, falling geometrically in the order of the classes",
    )
    sampling: Sampling = Field(
        default="uniform",
        description="draw the real images of a training step uniformly, or equally often from "
        "every class",
    )
    calibrate: bool = Field(
        default=False,
        description="add the log share of its training images to every class's logit in losses on "
        "uniformly drawn real images (balanced softmax)",
    )
    normalization: Kind = "mean_std"
    zca_regularization: float = Field(
        default=0.1, ge=0, description="share of the mean eigenvalue added to each eigenvalue"
    )
    mean: list[float] | None = Field(
        default=None,
        description="of every channel in [0, 1], to normalize with instead of that of the training "
        "images: what networks of squeeze.weights were trained with",
    )
    std: list[float] | None = Field(default=None, description="of every channel, beside mean")
    skip_bad_rows: bool = Field(default=False, description="leave unusable rows out, and log them")

    expected: Expected | None = Field(
        default=None, description="shape for `plan`, which then does not look at the dataset"
    )

    @model_validator(mode="after")
    def _expected_size_is_known(self) -> Self:
        if self.expected is not None and self.expected.side is None and self.resolution is None:
            raise ValueError("expected.side: missing, and resolution does not tell it either")
        return self

    def expected_shape(self) -> Shape:
        """The shape that `expected` describes, as `peek` would tell it."""
        assert self.expected is not None
        side = self.resolution or self.expected.side
        assert side is not None, "the recipe was checked"
        channels = CHANNELS[self.channels] or self.expected.channels
        return Shape(channels, side, side, self.expected.classes)

    @model_validator(mode="after")
    def _one_correction(self) -> Self:
        if self.calibrate and self.sampling == "balanced":
            raise ValueError(
                "calibrate: true and sampling: balanced would correct for unequal classes twice; "
                "choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _mean_and_std_belong_together(self) -> Self:
        mean, std = self.mean, self.std
        if mean is None and std is None:
            return self
        if mean is None or std is None or len(mean) != len(std) or min(std, default=0) <= 0:
            raise ValueError(
                f"mean and std: got {mean} and {std}, expected one number of each for every "
                "channel, std above 0; or neither"
            )
        if self.normalization != "mean_std":
            raise ValueError(
                f"mean and std: given with normalization: {self.normalization}, which fits its "
                "own; leave them out, or set normalization: mean_std"
            )
        return self

    @field_validator("classes")
    @classmethod
    def _distinct_classes(cls, classes: list[str | int] | None) -> list[str | int] | None:
        if classes is None:
            return None
        if len(classes) < 2:
            raise ValueError(f"got {len(classes)} classes, expected at least 2")
        repeated = sorted({str(name) for name in classes if classes.count(name) > 1})
        if repeated:
            raise ValueError(f"named more than once: {', '.join(repeated)}")
        return classes
