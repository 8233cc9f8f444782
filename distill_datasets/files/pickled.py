"""The one place where a pickle is opened: a file of `torch.save`. Nothing in it is run.

torch's own reader makes tensors, plain containers and texts, and refuses every other name. Numbers
and arrays of numpy are let through beside these: accuracies that an evaluation computed are often
saved with what was evaluated.
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from distill_datasets.errors import ArtifactError, cut

ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".tar")
"""Files whose names end like that are taken for ones of `torch.save`."""

_REBUILDERS = [
    (value.__reduce__()[0], f"numpy.{room}.multiarray.{name}")
    for name, value in (("scalar", np.float64()), ("_reconstruct", np.empty(0)))
    for room in ("core", "_core")  # as numpy 1 and numpy 2 write it
]
_NUMBERS = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"]
_HARMLESS: list[Any] = [*_REBUILDERS, np.ndarray, np.dtype, *_NUMBERS]


def read_pickled(file: Path, expected: str) -> Any:  # noqa: ANN401
    """What `torch.save` wrote: tensors, plain containers, texts, and numbers of numpy.

    Args:
        file: where it lies.
        expected: what should be in it, for the error.

    Raises:
        ArtifactError: it cannot be read, is damaged, or asks for code to be run.
    """
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"{file}: nothing that can be read without running code ({_first_line(error)}); "
            f"expected {expected}, saved by torch.save. Where you trust it, load it yourself and "
            "save its tensors alone"
        ) from error


def _first_line(error: BaseException) -> str:
    """The line of torch's text that names what was refused, without its advice to run it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return cut((named or lines or [type(error).__name__])[0].partition(". Please use")[0])
