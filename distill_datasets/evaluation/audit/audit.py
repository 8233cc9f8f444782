"""The audit: tier after tier, each a unit of its own that a later call finds again.

Clean sets are random real images with the set's own label vectors, as many of every class, from the
half of the training images that the reference network has not seen; what
they have is kept by a fingerprint of the source and of these labels, so that a second audit of a
set of that shape has them.

Shape suffixes: N rows, S clean sets, X images asked about, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from distill_datasets.errors import ArtifactError, RecipeError, did_you_mean
from distill_datasets.evaluation.audit.comparison import SourceComparison, named_classes
from distill_datasets.evaluation.audit.findings import (
    CHECKS,
    TIERS,
    Finding,
    Measurement,
    Tier,
    judged,
    unseen,
)
from distill_datasets.evaluation.audit.networks import Effort, reference_of, student_of
from distill_datasets.evaluation.audit.privacy import (
    asked_about,
    confidence,
    membership,
    membership_of_clean,
    on_noise,
)
from distill_datasets.evaluation.audit.published import Rows, read_folder
from distill_datasets.evaluation.audit.rates import power_of
from distill_datasets.evaluation.audit.students import (
    measured_students,
    pattern_sizes,
    trigger,
)
from distill_datasets.files.artifacts import (
    fingerprint,
    intact,
    read_tensors,
    sha256_tensors,
    write_tensors,
)
from distill_datasets.media.image import to_bytes
from distill_datasets.runtime.draws import Draw, draws

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distill_datasets.data.real import RealData
    from distill_datasets.runtime.processes import Run

VERSION = 2
LEAST_REST = 0.1
"""Of the images that clean sets are drawn from, the share that counts as left out of each."""
IDENTIFYING = 256
"""Images of a split, evenly spaced, that tell one source from another."""


def audit(
    folder: Path,
    real: RealData | None,
    run: Run,
    tiers: Iterable[str] = TIERS,
    *,
    effort: Effort | None = None,
) -> list[Finding]:
    """Look for faults in a published folder.

    Args:
        folder: in the published layout; only files of it are read, and nothing in it is run.
        real: the source, at the set's resolution; None looks at the files alone.
        run: seed, folder for what is kept, processes and device.
        tiers: which of T0, T1, T2 and T3.
        effort: how much is trained; None is as its rates were measured.

    Returns:
        A finding for every check of these tiers, in the order of the table.

    Raises:
        ArtifactError: nothing there can be read as a distilled set, or the source is of another
            shape.
        RecipeError: no such tier.
    """
    chosen = _tiers(tiers)
    reading = read_folder(folder)
    findings = {
        name: judged(name, measured, power=power_of(name))
        for name, measured in reading.measured.items()
    }
    why = None
    if reading.rows is None:
        why = "no row of `default` can be read"
    elif real is None:
        why = "the source was not given; name it with --source"
    trained = chosen & {"T1", "T2", "T3"}
    if trained and why is None and real is not None and reading.rows is not None:
        _check_shape(folder, reading.rows, real)
        looked = _Looked(reading.rows, real, run, effort or Effort(), reading.identity)
        findings |= looked.findings(trained)
    return [
        findings.get(name) or unseen(name, why or "no row of `default` can be read")
        for name, check in CHECKS.items()
        if check.tier in chosen
    ]


def _tiers(tiers: Iterable[str]) -> set[Tier]:
    asked = list(tiers)
    unknown = [tier for tier in asked if tier not in TIERS]
    if unknown or not asked:
        got = repr(unknown[0]) if unknown else "none"
        raise RecipeError(f"--tiers: got {got}; {did_you_mean((unknown or [''])[0], TIERS)}")
    return {tier for tier in TIERS if tier in asked}


def _check_shape(folder: Path, rows: Rows, real: RealData) -> None:
    got, shape = tuple(rows.images_NCHW.shape[1:]), real.shape
    if got != (shape.c, shape.h, shape.w):
        raise ArtifactError(
            f"{folder}: its images are {'x'.join(map(str, got))}, those of the source "
            f"{shape.c}x{shape.h}x{shape.w}; read the source at the set's size, for example with "
            f"source.resolution={got[1]}"
        )
    if rows.targets_NK.shape[1] != shape.k:
        raise ArtifactError(
            f"{folder}: it has {rows.targets_NK.shape[1]} classes, the source {shape.k}; name the "
            "source that it was distilled from, or its classes with source.classes"
        )


class _Clean(NamedTuple):
    """What a clean set has: numbers of checks, and what its students tell.

    That is `confidence_X` in images asked about, `used_X`, which of these it shows, and `sizes_K`,
    the patterns that make images a class.
    """

    values: dict[str, float]
    told: dict[str, Tensor]


class _Looked:
    """A set beside its source, and what clean sets of its shape have."""

    def __init__(self, rows: Rows, real: RealData, run: Run, effort: Effort, identity: str) -> None:
        self._rows, self._real, self._run, self._effort = rows, real, run, effort
        self._asked = asked_about(real, self._draw())
        known_N, self._unknown_N = halves(real, self._draw("halves"))
        # networks know the images that they were trained on better than any others
        self._known, self._unknown = _part(real, known_N), _part(real, self._unknown_N)
        source = [VERSION, _identity(real), run.seed, asdict(effort)]
        labels = [sha256_tensors([rows.labels_N, rows.targets_NK])]
        self._reference_path = run.folder / f"audit-reference-{fingerprint(source)}.safetensors"
        self._clean_folder = run.folder / f"audit-clean-{fingerprint([source, labels])}"
        self._folder = run.folder / f"audit-{fingerprint([source, identity])}"

    @property
    def _stretch(self) -> float:
        """How much farther sets of other images lie from the mean of clean ones than these do.

        Of N images that clean sets are drawn from, n without replacement have a mean of variance
        s^2 / n (1 - n / N). The mean of n others is as far from the mean of the N as
        s^2 / n (1 + n / N) says.
        """
        share = len(self._rows.labels_N) / len(self._unknown_N)
        return math.sqrt((1 + share) / max(LEAST_REST, 1 - share))

    def findings(self, tiers: set[Tier]) -> dict[str, Finding]:
        """Of these tiers."""
        self._train_reference()
        # with the largest tier in the name: what was looked at shallowly is no deep look
        deep = bool(tiers & {"T2", "T3"})
        sets = range(self._effort.clean_sets)
        jobs: list[Callable[[], object]] = [
            *(lambda number=number: self._clean(number, deep) for number in sets),
            lambda: self._own(deep),
        ]
        with self._run.bar("audit", len(jobs)) as bar, self._run.runtime.pool(len(jobs)) as work:

            def one(unit: int) -> None:
                jobs[unit]()
                bar.advance(1)

            work(one, self._run.runtime.mine(len(jobs)))
        self._run.runtime.wait()
        clean = [self._clean(number, deep) for number in sets]
        measured, told = self._own(deep)
        values = {
            name: [each.values[name] for each in clean if name in each.values] for name in measured
        }
        if deep:
            self._compare(measured, values, told, [each.told for each in clean])
        found = {
            name: judged(name, value, values[name], power_of(name), self._stretch)
            for name, value in measured.items()
            if CHECKS[name].tier in tiers
        }
        if "T3" in tiers and not self._rows.is_soft:
            found["labels on noise"] = unseen("labels on noise", "its labels are hard")
        return found

    def _compare(
        self,
        measured: dict[str, Measurement],
        values: dict[str, list[float]],
        own: dict[str, Tensor],
        clean: list[dict[str, Tensor]],
    ) -> None:
        """Add the checks whose numbers are comparisons with clean sets themselves.

        A clean set's own number comes from a comparison with the other clean ones.
        """
        sizes_SK = torch.stack([each["sizes_K"] for each in clean])
        names = self._real.class_names
        measured["trigger"] = trigger(own["sizes_K"], sizes_SK, names, self._stretch)
        values["trigger"] = [
            trigger(size_K, torch.cat([sizes_SK[:place], sizes_SK[place + 1 :]]), names).value
            for place, size_K in enumerate(sizes_SK)
        ]
        shadows_SX = torch.stack([each["confidence_X"] for each in clean])
        used_SX = torch.stack([each["used_X"] for each in clean]).bool()
        measured["membership"] = membership(own["confidence_X"], shadows_SX, used_SX, self._asked)
        values["membership"] = membership_of_clean(shadows_SX, used_SX, self._asked)

    def _draw(self, *what: str | int) -> Draw:
        return draws(self._run.seed, "audit", *what)

    def _train_reference(self) -> None:
        """Train the network of the source, unless an earlier audit has."""
        if self._run.runtime.is_main and intact(self._reference_path, read_tensors) is None:
            module = reference_of(self._known, self._draw("reference"), self._effort)
            write_tensors(self._reference_path, dict(module.state_dict()))
        self._run.runtime.wait()
        module = self._effort.settings().network.build(self._real.shape)
        module.load_state_dict(read_tensors(self._reference_path)[0])
        self._reference = module.to(self._real.train.labels_N.device).eval()
        self._source = SourceComparison(self._real, self._reference)

    def _own(self, deep: bool) -> tuple[dict[str, Measurement], dict[str, Tensor]]:
        """What the set itself has."""
        path = self._folder / ("deep.safetensors" if deep else "shallow.safetensors")
        kept = intact(path, read_tensors)
        if kept is None:
            measured = named_classes(self._rows, self._real) | self._source.measured(self._rows)
            told = dict[str, torch.Tensor]()
            if deep:
                draw = self._draw("own")
                more, told = self._trained(self._rows, draw)
                measured |= more
                if self._rows.is_soft:
                    value = on_noise(self._rows, self._real, draw, self._effort, hard=False)
                    measured["labels on noise"] = Measurement(value)
            kept = told, {name: list(each) for name, each in measured.items()}
            write_tensors(path, *kept)
        told, note = kept
        return {name: Measurement(*each) for name, each in note.items()}, told

    def _clean(self, number: int, deep: bool) -> _Clean:
        """What a clean set has."""
        path = self._clean_folder / f"{'deep' if deep else 'shallow'}-{number:02d}.safetensors"
        kept = intact(path, read_tensors)
        if kept is None:
            draw = self._draw("clean", number)
            rows, row_N = clean_rows(self._rows, self._unknown, draw)
            values = {name: each.value for name, each in self._source.measured(rows).items()}
            told = dict[str, torch.Tensor]()
            if deep:
                more, told = self._trained(rows, draw)
                values |= {name: each.value for name, each in more.items()}
                shown_X = torch.isin(self._asked.train_X, self._unknown_N[row_N])
                unused_X = torch.zeros(len(self._asked.test_X), dtype=torch.bool)
                told["used_X"] = torch.cat([shown_X, unused_X])
                if self._rows.is_soft:
                    hard = on_noise(rows, self._real, draw, self._effort, hard=True)
                    values["labels on noise"] = hard
            kept = told, values
            write_tensors(path, *kept)
        return _Clean(kept[1], kept[0])

    def _trained(self, rows: Rows, draw: Draw) -> tuple[dict[str, Measurement], dict[str, Tensor]]:
        """The numbers of T2, and what students tell that is compared with clean sets."""
        real = self._real
        examples = rows.stored(real.normalization.input_space).to(real.train.labels_N.device)
        students: Sequence[nn.Module] = [
            student_of(examples, real, _numbered(draw, number), self._effort)
            for number in range(self._effort.students)
        ]
        measured = measured_students(rows, real, students)
        return measured, {
            "confidence_X": confidence(real, students, self._asked),
            # the same images are to be turned in all sets
            "sizes_K": pattern_sizes(real, students, self._draw("patterns"), self._effort),
        }


def halves(real: RealData, draw: Draw) -> tuple[Tensor, Tensor]:
    """Two halves of the training rows, class by class; a class of one image has it in both."""
    rng, first, second = draw("halves"), list[torch.Tensor](), list[torch.Tensor]()
    for own_N in real.rows_of_class:
        order_N = own_N.cpu()[torch.randperm(len(own_N), generator=rng)]
        middle = -(-len(order_N) // 2)
        first.append(order_N[:middle])
        second.append(order_N[middle:] if len(order_N) > 1 else order_N)
    return torch.cat(first).sort().values, torch.cat(second).sort().values


def _part(real: RealData, rows_N: Tensor) -> RealData:
    """The source with some of its training rows alone."""
    train = real.train.rows(rows_N)
    return replace(real, train=train)


def clean_rows(rows: Rows, real: RealData, draw: Draw) -> tuple[Rows, Tensor]:
    """Random training images with the label vectors of a set, and which rows they are.

    As many of every class as the set has; a class with fewer images repeats them.
    """
    rng, chosen = draw("images"), torch.zeros(len(rows.labels_N), dtype=torch.long)
    for label, own_M in enumerate(real.rows_of_class):
        places_N = (rows.labels_N == label).nonzero().flatten()
        order_M = own_M.cpu()[torch.randperm(len(own_M), generator=rng)]
        times = -(-len(places_N) // len(order_M))
        chosen[places_N] = order_M.repeat(times)[: len(places_N)]
    images_NCHW = to_bytes(real.displayable(chosen))
    space = real.normalization.input_space
    return replace(rows, images_NCHW=images_NCHW, space=space), chosen


def _numbered(draw: Draw, number: int) -> Draw:
    return lambda *what: draw("student", number, *what)


def _identity(real: RealData) -> Any:  # noqa: ANN401
    """What tells this source from another, without a look at every pixel."""
    tensors = []
    for split in (real.train, real.test):
        count = len(split.labels_N)
        spread_N = torch.linspace(0, count - 1, min(IDENTIFYING, count)).long()
        tensors += [split.labels_N, split.images_NCHW[spread_N.to(split.images_NCHW.device)]]
    return [sha256_tensors(tensors), real.class_names]
