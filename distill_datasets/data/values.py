"""What the values of many images say together, and one image alone cannot tell."""

from __future__ import annotations

from typing import NamedTuple

from distill_datasets.errors import DataError
from distill_datasets.media.image import FULL_16_BIT, Seen

LEAST_RANGE = 0.1
MOST_FADED = 0.1


class Values(NamedTuple):
    """What is known of the values of some images, for what one image alone cannot tell.

    Attributes:
        deep: how many files have 16 bits a channel.
        peak: the highest value in these, in 0..65535.
        transparent: how many have transparent parts.
        faded: how many of these show nothing over the background.
    """

    deep: int = 0
    peak: int = 0
    transparent: int = 0
    faded: int = 0

    @classmethod
    def of(cls, seen: Seen) -> Values:
        """Those of one image."""
        deep, transparent = seen.peak is not None, seen.faded is not None
        return cls(int(deep), seen.peak or 0, int(transparent), int(bool(seen.faded)))

    def with_those(self, other: Values) -> Values:
        """Those of both."""
        return Values(
            self.deep + other.deep,
            max(self.peak, other.peak),
            self.transparent + other.transparent,
            self.faded + other.faded,
        )

    def check(self, white_level: int | None, background: str | None) -> None:
        """Refuse a set of which 8 bits keep next to nothing, unless the recipe says it is meant.

        Args:
            white_level: `source.white_level`.
            background: `source.background`.

        Raises:
            DataError: names the field that keeps the values.
        """
        if self.deep and white_level is None and self.peak < LEAST_RANGE * FULL_16_BIT:
            bits = max(8, self.peak.bit_length())
            raise DataError(
                f"{self.deep:,} images have 16 bits a channel and no value above {self.peak:,} of "
                f"{FULL_16_BIT:,}: as 8 bits they would keep {self.peak // 257 + 1} of 256 "
                f"values; set source.white_level to the value that is white ({2**bits - 1} for "
                f"{bits} bits), or to {FULL_16_BIT} where they are meant to be that dark"
            )
        if background is None and self.faded > MOST_FADED * self.transparent:
            raise DataError(
                f"{self.faded:,} of {self.transparent:,} images with transparent parts show "
                "nothing over white: what is drawn in them is white itself; set "
                "source.background=black, or =white to take them as they are"
            )
