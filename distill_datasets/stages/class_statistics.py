"""The stage that measures what the BatchNorm layers of teachers see of every class.

One pass in eval mode over the training images, the classes one after the other. A unit is a range
of these rows; its file holds sums and sums of squares, in double precision, of the classes that it
touches. All units are dealt to processes and added in order, so that their number changes no bit.

Source: LPLD (arXiv:2410.15919), section 3.2, whose program keeps moving averages of batches, a
class at a time; these are the moments of all images of a class, what differs between images too.

Shape suffixes: N training rows, B a batch, K classes (k those of a unit), C channels of a layer.
"""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.data.real import RealData
from distill_datasets.files.artifacts import (
    fingerprint,
    holds_tensors,
    read_tensors,
    write_tensors,
)
from distill_datasets.networks.teachers import batch_norms, with_hooks
from distill_datasets.runtime.memory import images_at_once
from distill_datasets.runtime.processes import Run
from distill_datasets.stages.source import LoadedSource
from distill_datasets.stages.squeeze import SqueezedFolder, with_statistics

VERSION = 1
UNIT_ROWS = 4096
CACHED_VALUES = 2**20


class Range(NamedTuple):
    """Rows of the training split of consecutive classes: all of `first` up to `last`, or some."""

    rows_N: Tensor
    first: int
    last: int


class Sums:
    """Of every class the values before a layer: their number, sum and sum of squares."""

    def __init__(self, classes: int) -> None:
        self.count_k = torch.zeros(classes, dtype=torch.float64)
        self.sum_kC = torch.zeros(())
        self.square_kC = torch.zeros(())

    def add(self, features: Tensor, share_kB: Tensor) -> None:
        """Take in a layer's input (B, C, ...); `share_kB` is 1 where an image is of a class."""
        features_BCP = features.reshape(*features.shape[:2], -1)
        sums, squares = list[Tensor](), list[Tensor]()
        # a few images at a time: in double precision all of them would leave the cache (16 times)
        for some_BCP in torch.split(features_BCP, max(1, CACHED_VALUES // features_BCP[0].numel())):
            values_BCP = some_BCP.to(torch.float64, copy=True)
            sums.append(values_BCP.sum(dim=2))
            squares.append(values_BCP.square_().sum(dim=2))
        self.sum_kC = self.sum_kC + (share_kB @ torch.cat(sums)).cpu()
        self.square_kC = self.square_kC + (share_kB @ torch.cat(squares)).cpu()
        self.count_k += share_kB.sum(dim=1).cpu() * features_BCP.shape[2]


def run_statistics(
    squeezed: SqueezedFolder,
    source: LoadedSource,
    run: Run,
) -> SqueezedFolder:
    """Measure the statistics of every class and member that no earlier run has measured.

    Args:
        squeezed: the teachers; a member without BatchNorm has none.
        source: whose training images they look at.
        run: seed, folder, processes and device; units are dealt to its processes and threads.

    Returns:
        The same members, which now answer `class_statistics`.
    """
    identity = [VERSION, "statistics", squeezed.fingerprint, source.fingerprint]
    folder = run.folder / f"statistics-{fingerprint(identity)}"
    real = source.real
    ranges = class_ranges(real)
    units = [(member, place) for member in range(squeezed.members) for place in range(len(ranges))]
    files = ((member, _member_file(folder, member)) for member in range(squeezed.members))
    missing = [member for member, path in files if not holds_tensors(path)]
    # `missing` is the same list on every process: nobody writes before all have looked
    run.runtime.wait()

    def measure(unit: int) -> None:
        member, place = units[unit]
        path = _unit_file(folder, member, place)
        if member in missing and not holds_tensors(path):
            module = squeezed.module(member).to(run.runtime.device)
            write_tensors(path, sums_of(module, real, ranges[place]))
        bar.advance(1)

    mine = run.runtime.mine(len(units))
    with (
        run.bar("statistics", len(mine)) as bar,
        run.runtime.pool(len(units)) as run_units,
    ):
        run_units(measure, mine)
    # every unit is there; the main process adds them in order and writes the members' files
    run.runtime.wait()
    for member in missing if run.runtime.is_main else []:
        tensors, layers = _moments(folder, member, ranges, real.shape.k)
        write_tensors(_member_file(folder, member), tensors, {"layers": layers})
    run.runtime.wait()
    return with_statistics(squeezed, folder)


def class_ranges(real: RealData) -> list[Range]:
    """The units: the training rows, the classes in order, cut into pieces of equal length."""
    order_N = torch.cat(real.rows_of_class)
    labels_N = real.train.labels_N[order_N]
    return [
        Range(rows_N, int(own_N[0]), int(own_N[-1]))
        for rows_N, own_N in zip(
            torch.split(order_N, UNIT_ROWS), torch.split(labels_N, UNIT_ROWS), strict=True
        )
    ]


@torch.no_grad()
def sums_of(module: nn.Module, real: RealData, unit: Range) -> dict[str, Tensor]:
    """What the BatchNorm layers of a frozen module see of the rows of a unit.

    Returns:
        For layer l `count/l` (k,), `sum/l` and `square/l` (k, C) in double precision: the number of
        values, their sum and that of their squares, for each class of the unit.
    """
    classes = unit.last - unit.first + 1
    layers = [Sums(classes) for _ in batch_norms(module)]
    share_kB = torch.zeros(())

    def note(place: int, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        layers[place].add(inputs[0], share_kB)

    own = with_hooks(module, note)
    device = next(module.parameters()).device
    for rows_B in torch.split(unit.rows_N, images_at_once(real.shape, device)):
        own_B = real.train.labels_N[rows_B] - unit.first
        share_kB = F.one_hot(own_B, classes).double().T
        own(real.select(rows_B).images_BCHW)
    tensors = dict[str, Tensor]()
    for place, sums in enumerate(layers):
        tensors[f"count/{place}"] = sums.count_k
        tensors[f"sum/{place}"] = sums.sum_kC
        tensors[f"square/{place}"] = sums.square_kC
    return tensors


def _moments(
    folder: Path, member: int, ranges: list[Range], classes: int
) -> tuple[dict[str, Tensor], int]:
    """Mean and biased variance (K, C) of every layer from all units, and the number of layers."""
    totals = dict[str, Tensor]()
    for place, unit in enumerate(ranges):
        for name, part in read_tensors(_unit_file(folder, member, place))[0].items():
            if name not in totals:
                totals[name] = torch.zeros(classes, *part.shape[1:], dtype=torch.float64)
            totals[name][unit.first : unit.last + 1] += part
    layers = sum(name.startswith("count/") for name in totals)
    tensors = dict[str, Tensor]()
    for layer in range(layers):
        count_K1 = totals[f"count/{layer}"][:, None]
        # E[x] and E[x^2] - E[x]^2, which rounding may leave just below zero
        mean_KC = totals[f"sum/{layer}"] / count_K1
        var_KC = (totals[f"square/{layer}"] / count_K1 - mean_KC.square()).clamp(min=0)
        tensors |= {f"mean/{layer}": mean_KC.float(), f"var/{layer}": var_KC.float()}
    return tensors, layers


def _unit_file(folder: Path, member: int, place: int) -> Path:
    return folder / f"sums-{member:04d}-{place:05d}.safetensors"


def _member_file(folder: Path, member: int) -> Path:
    return folder / f"member-{member:04d}.safetensors"
