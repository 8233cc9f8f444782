"""The audit: tier after tier, each a unit of its own that a later call finds again.

Clean sets are random real images with the set's own label vectors, as many of every class; what
they have is kept by a fingerprint of the source and of these labels, so that a second audit of a
set of that shape has them.

Shape suffixes: N rows, S clean sets, X images asked about, C channels, H W pixels.
"""

from __future__ import annotations

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
    on_noise,
)
from distill_datasets.evaluation.audit.published import Rows, read_folder
from distill_datasets.evaluation.audit.rates import power_of
from distill_datasets.evaluation.audit.students import measured_students
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

VERSION = 1
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
    """What a clean set has: numbers of checks, and what its students say of images asked about."""

    values: dict[str, float]
    confidence_X: Tensor
    used_X: Tensor


class _Looked:
    """A set beside its source, and what clean sets of its shape have."""

    def __init__(self, rows: Rows, real: RealData, run: Run, effort: Effort, identity: str) -> None:
        self._rows, self._real, self._run, self._effort = rows, real, run, effort
        self._asked = asked_about(real, draws(run.seed, "audit"))
        source = [VERSION, _identity(real), run.seed, asdict(effort)]
        labels = [sha256_tensors([rows.labels_N, rows.targets_NK])]
        self._reference_path = run.folder / f"audit-reference-{fingerprint(source)}.safetensors"
        self._clean_folder = run.folder / f"audit-clean-{fingerprint([source, labels])}"
        self._folder = run.folder / f"audit-{fingerprint([source, identity])}"

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
        measured, own_X = self._own(deep)
        if deep:
            shadows_SX = torch.stack([each.confidence_X for each in clean])
            used_SX = torch.stack([each.used_X for each in clean])
            measured["membership"] = membership(own_X, shadows_SX, used_SX, self._asked)
        found = {}
        for name, value in measured.items():
            if CHECKS[name].tier in tiers:
                of_clean = [each.values[name] for each in clean if name in each.values]
                found[name] = judged(name, value, of_clean, power_of(name))
        if "T3" in tiers and not self._rows.is_soft:
            found["labels on noise"] = unseen("labels on noise", "its labels are hard")
        return found

    def _draw(self, *what: str | int) -> Draw:
        return draws(self._run.seed, "audit", *what)

    def _train_reference(self) -> None:
        """Train the network of the source, unless an earlier audit has."""
        if self._run.runtime.is_main and intact(self._reference_path, read_tensors) is None:
            module = reference_of(self._real, self._draw("reference"), self._effort)
            write_tensors(self._reference_path, dict(module.state_dict()))
        self._run.runtime.wait()
        module = self._effort.settings().network.build(self._real.shape)
        module.load_state_dict(read_tensors(self._reference_path)[0])
        self._reference = module.to(self._real.train.labels_N.device).eval()
        self._source = SourceComparison(self._real, self._reference)

    def _own(self, deep: bool) -> tuple[dict[str, Measurement], Tensor]:
        """What the set itself has."""
        path = self._folder / ("deep.safetensors" if deep else "shallow.safetensors")
        kept = intact(path, read_tensors)
        if kept is None:
            measured = named_classes(self._rows, self._real) | self._source.measured(self._rows)
            own_X = torch.zeros(0)
            if deep:
                draw = self._draw("own")
                more, own_X = self._trained(self._rows, draw)
                measured |= more
                if self._rows.is_soft:
                    value = on_noise(self._rows, self._real, draw, self._effort, hard=False)
                    measured["labels on noise"] = Measurement(value)
            note = {name: list(each) for name, each in measured.items()}
            write_tensors(path, {"confidence_X": own_X}, note)
            kept = {"confidence_X": own_X}, note
        tensors, note = kept
        return {name: Measurement(*each) for name, each in note.items()}, tensors["confidence_X"]

    def _clean(self, number: int, deep: bool) -> _Clean:
        """What a clean set has."""
        path = self._clean_folder / f"{'deep' if deep else 'shallow'}-{number:02d}.safetensors"
        kept = intact(path, read_tensors)
        if kept is None:
            draw = self._draw("clean", number)
            rows, row_N = clean_rows(self._rows, self._real, draw)
            values = {name: each.value for name, each in self._source.measured(rows).items()}
            said_X, used_X = torch.zeros(0), torch.zeros(0, dtype=torch.bool)
            if deep:
                more, said_X = self._trained(rows, draw)
                values |= {name: each.value for name, each in more.items()}
                shown_X = torch.isin(self._asked.train_X, row_N)
                used_X = torch.cat([shown_X, torch.zeros(len(self._asked.test_X)).bool()])
                if self._rows.is_soft:
                    hard = on_noise(rows, self._real, draw, self._effort, hard=True)
                    values["labels on noise"] = hard
            tensors = {"confidence_X": said_X, "used_X": used_X}
            write_tensors(path, tensors, values)
            kept = tensors, values
        tensors, values = kept
        return _Clean(values, tensors["confidence_X"], tensors["used_X"].bool())

    def _trained(self, rows: Rows, draw: Draw) -> tuple[dict[str, Measurement], Tensor]:
        """The numbers of T2, and what students say of the images asked about."""
        real = self._real
        examples = rows.stored(real.normalization.input_space).to(real.train.labels_N.device)
        students: Sequence[nn.Module] = [
            student_of(examples, real, _numbered(draw, number), self._effort)
            for number in range(self._effort.students)
        ]
        measured = measured_students(rows, real, students, draw, self._effort)
        return measured, confidence(real, students, self._asked)


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
