"""Accuracy against minutes as a PNG: `python -m tests.benchmarks.curves FILE... --output PNG`.

A file is JSON: {"name": "paper's settings", "minutes": [1, 2, ...], "accuracy": [0.2, 0.3, ...]},
accuracies in [0, 1]. Drawn with Pillow, which the library needs anyway.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZE, LEFT, TOP, RIGHT, BOTTOM = (900, 560), 70, 30, 30, 60
COLORS = ("#1f5fb4", "#c8501e", "#2a8c4a", "#8040a0", "#a08000", "#404040")


def read(path: Path) -> dict[str, Any]:
    """One curve, checked.

    Raises:
        ValueError: it has no points, or not as many minutes as accuracies, or these are no shares.
    """
    curve: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    minutes, accuracies = curve["minutes"], curve["accuracy"]
    if not minutes or len(minutes) != len(accuracies):
        raise ValueError(
            f"{path}: expected as many minutes as accuracies and at least one, got {len(minutes)} "
            f"and {len(accuracies)}"
        )
    if not all(0 <= value <= 1 for value in accuracies):
        raise ValueError(f"{path}: expected accuracies in [0, 1], got {accuracies}")
    return curve


def ticks(top: float, bottom: float = 0.0) -> list[float]:
    """About five round numbers from at most `bottom` to at least `top`."""
    span = top - bottom or top
    unit = 10 ** math.floor(math.log10(span / 5))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * 5 >= span)
    first, last = math.floor(round(bottom / step, 9)), math.ceil(round(top / step, 9))
    return [step * place for place in range(first, max(last, first + 1) + 1)]


def place_of(
    minute: float, accuracy: float, last: float, bottom: float, top: float
) -> tuple[float, float]:
    """Where a point lies in the picture."""
    wide, high = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    return LEFT + wide * minute / last, TOP + high * (top - accuracy) / (top - bottom)


def draw(curves: Sequence[dict[str, Any]]) -> Image.Image:
    """All curves in one picture."""
    minutes = ticks(max(value for curve in curves for value in curve["minutes"]) or 1.0)
    accuracies = [value for curve in curves for value in curve["accuracy"]]
    shares = ticks(max(accuracies) or 1.0, min(accuracies))
    last, bottom, top = minutes[-1], shares[0], shares[-1]
    picture = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(picture)
    for minute in minutes:
        x, floor = place_of(minute, bottom, last, bottom, top)
        pen.line([(x, TOP), (x, floor)], fill="#dddddd")
        pen.text((x, floor + 8), f"{minute:g}", fill="black", anchor="ma")
    for share in shares:
        x, y = place_of(0, share, last, bottom, top)
        pen.line([(x, y), (SIZE[0] - RIGHT, y)], fill="#dddddd")
        pen.text((x - 8, y), f"{round(100 * share, 9):g} %", fill="black", anchor="rm")
    pen.text((SIZE[0] / 2, SIZE[1] - 24), "minutes", fill="black", anchor="ma")
    for number, curve in enumerate(curves):
        color = COLORS[number % len(COLORS)]
        pairs = sorted(zip(curve["minutes"], curve["accuracy"], strict=True))
        points = [place_of(minute, accuracy, last, bottom, top) for minute, accuracy in pairs]
        pen.line(points, fill=color, width=3)
        for x, y in points:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=color)
        pen.text((LEFT + 14, TOP + 10 + 18 * number), curve["name"], fill=color)
    return picture


def main(arguments: list[str] | None = None) -> None:
    """Read the files and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.curves", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args(arguments)
    draw([read(path) for path in asked.files]).save(asked.output)


if __name__ == "__main__":
    main()
