"""Images that a generator makes: prototypes decoded, and samples that are guided and chosen.

Everything is done class by class, so that classes are units of work: found ones are skipped, and
processes share them.

Shape suffixes: N real images of a class, B samples, C channels and H W pixels of an image, L
channels and h w sides of a latent, D values of a latent, M networks, K classes, S steps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from distill_datasets.config import Section
from distill_datasets.errors import RecipeError
from distill_datasets.models.generator import Generator, Guide, noised
from distill_datasets.selection import guidance
from distill_datasets.selection.coresets import k_means, squared_distances
from distill_datasets.selection.selection import Selection, Teacher, present, repeated

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData

logger = logging.getLogger("distill_datasets")

SAMPLED_AT_ONCE = 64
"""Samples that are made side by side, and that deviation keeps apart."""
REFINED_AT_ONCE = 16
"""Latents that are refined side by side, with the graph of the flow."""


def generator_of(real: RealData, selection: Selection) -> Generator:
    """The generator of the recipe.

    Raises:
        RecipeError: the recipe has none.
    """
    if real.generator is None:
        raise RecipeError(
            f"init: {selection.name!r} asks a generator; add a section generator, for example "
            "generator: {name: trained, autoencoder: {epochs: 5}, flow: {epochs: 20}}"
        )
    return real.generator


def class_latents(
    real: RealData, label: int, generator: Generator, rng: torch.Generator, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rows (N,) of a class, all or some of them at random, and their latents (N, L, h, w)."""
    rows_N = real.rows_of_class[label].cpu()
    if most is not None:
        rows_N = rows_N[torch.randperm(len(rows_N), generator=rng)[:most]]
    chunks = torch.split(rows_N, SAMPLED_AT_ONCE)
    return rows_N, torch.cat([generator.encode(real.displayable(rows_B)) for rows_B in chunks])


def clusters(latents_NLhw: Tensor, count: int, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Of k-means on latents: every center (L, h, w), and the places of what belongs to it.

    A class with fewer images repeats its centers.
    """
    values_ND = latents_NLhw.flatten(1)
    fewer = min(count, len(values_ND))
    cluster_N = k_means(values_ND, fewer, rng)
    own = [(cluster_N == cluster).nonzero().flatten() for cluster in range(fewer)]
    found = [(latents_NLhw[places].double().mean(dim=0).float(), places) for places in own]
    return [found[turn] for turn in repeated(range(fewer), count)]


def centers(latents_NLhw: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """The centers of `clusters`, (B, L, h, w)."""
    return torch.stack([center for center, _ in clusters(latents_NLhw, count, rng)])


class Refine(Section):
    """Latents are moved a little, to where the flow finds the noise that is added to them.

    At times of the last quarter of the sampling, drawn in every step, with one noise a latent.

    Source: CaO2 (arXiv:2506.22637), whose code takes 100 steps, and no class on ImageNet-1K.
    """

    steps: int = Field(gt=0, le=100_000, description="of Adam, on the latent alone")
    lr: float = Field(default=0.0006, gt=0, description="step size of Adam")
    worst: float = Field(
        default=10.0,
        ge=0,
        description="weight of the largest error of a latent beside their mean square",
    )
    told: Literal["nothing", "class"] = Field(
        default="nothing", description="what the flow is told of the class meanwhile"
    )

    def problems(self, steps: int, *, unconditional: bool) -> Iterator[str]:
        """See `Selection.sampling_problems`."""
        if steps < 3:
            yield (
                f"generator.steps: got {steps}, and refine looks at times of their last quarter; "
                "raise them to 3 at least"
            )
        if self.told == "nothing" and not unconditional:
            yield (
                "distill.canvas.init.refine.told: nothing, and generator.flow.drop: 0 never shows "
                "the flow a latent without a class; raise flow.drop, or tell it the class"
            )

    def __call__(
        self, generator: Generator, latents_BLhw: Tensor, label: int, rng: torch.Generator
    ) -> Tensor:
        """The latents refined, on the device."""
        assert generator.velocity is not None, "a recipe asks a generator that samples"
        count = len(latents_BLhw)
        noise_BLhw = generator.start(rng, count)
        late = torch.tensor(late_times(generator.times))
        drawn_SB = late[torch.randint(len(late), (self.steps, count), generator=rng)]
        told = generator.shape.k if self.told == "nothing" else label
        labels_B = torch.full((count,), told, device=generator.device)
        rows = zip(
            *(
                torch.split(each, REFINED_AT_ONCE)
                for each in (latents_BLhw, noise_BLhw, drawn_SB.T.to(generator.device), labels_B)
            ),
            strict=True,
        )
        return torch.cat(
            [
                guidance.refined(z, noise, times.T, y, generator.velocity, self.lr, self.worst)
                for z, noise, times, y in rows
            ]
        )


def late_times(times: Sequence[float]) -> list[float]:
    """The times of the last quarter of the steps, without the last one and without noise alone."""
    steps = len(times) - 1
    return list(times[steps - max(2, steps // 4) : steps - 1])


class NearestLatent(Selection):
    """The real image nearest to each center of a class's latents: what prototypes compare with."""

    paper: ClassVar[str] = "MGD3, arXiv:2505.18963, mode discovery"
    needs_generator: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    name: Literal["nearest_latent"] = "nearest_latent"

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        real.warn_of_few(per_class)
        rows_N, latents_NLhw = class_latents(real, label, generator_of(real, self), rng)
        values_ND, chosen = latents_NLhw.flatten(1), list[int]()
        for center_Lhw, places in clusters(latents_NLhw, per_class, rng):
            distances = squared_distances(values_ND[places], center_Lhw.flatten().double())
            chosen.append(int(places[distances.argmin()]))
        return real.displayable(rows_N[chosen])


class Prototypes(Selection):
    """Latents that stand for the clusters of a class, noised a little, taken back and decoded.

    `centers` are those of k-means. `groups` are drawn instead: real latents are taken back in time,
    a normal distribution is fitted to every value there, and of many groups drawn from it the one
    is kept whose mean, deviation and skew are nearest to those of the distribution.

    Source: D4M (arXiv:2407.15138) and VLCP for centers, D3HR (arXiv:2505.18399) for groups.
    """

    paper: ClassVar[str] = "D4M, arXiv:2407.15138; D3HR, arXiv:2505.18399; CaO2, arXiv:2506.22637"
    shows_real: ClassVar[bool] = False
    needs_generator: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    name: Literal["prototypes"] = "prototypes"
    how: Literal["centers", "groups"] = Field(
        default="centers",
        description="clusters of k-means (D4M), or groups drawn by moments (D3HR)",
    )
    strength: float = Field(
        default=0.7,
        ge=0,
        le=1,
        description="share of the way back to noise that latents go before the flow takes them to "
        "images; 0 decodes them as they are",
    )
    groups: int = Field(default=1000, gt=0, le=1_000_000, description="groups that are drawn")
    inverted: int = Field(
        default=512, gt=1, description="real images of a class whose latents are taken back"
    )
    refine: Refine | None = Field(
        default=None, description="move what was made a little before it is decoded (CaO2)"
    )

    def cited(self) -> list[str]:
        d4m, d3hr, cao2 = self.paper.split("; ")
        own = [d4m if self.how == "centers" else d3hr]
        return own if self.refine is None else [*own, cao2]

    def sampling_problems(self, steps: int, *, unconditional: bool) -> Iterator[str]:
        if self.refine is not None:
            yield from self.refine.problems(steps, unconditional=unconditional)

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        generator, since = generator_of(real, self), 1 - self.strength
        labels_B = torch.full((per_class,), label, device=generator.device)
        if self.how == "centers":
            _, latents_NLhw = class_latents(real, label, generator, rng)
            made = centers(latents_NLhw, per_class, rng).to(generator.device)
            start = noised(made, generator.start(rng, per_class), since)
        else:
            _, latents_NLhw = class_latents(real, label, generator, rng, self.inverted)
            start = self._group(generator, latents_NLhw, label, per_class, rng)
        if self.strength > 0:
            start = generator.sample(start, labels_B, since=since)
        if self.refine is not None:
            start = self.refine(generator, start, label, rng)
        return generator.show(start, labels_B)

    def _group(
        self,
        generator: Generator,
        latents_NLhw: Tensor,
        label: int,
        per_class: int,
        rng: torch.Generator,
    ) -> Tensor:
        """The group (B, L, h, w) whose moments are nearest to those of the class."""
        early = []
        for chunk in torch.split(latents_NLhw.to(generator.device), SAMPLED_AT_ONCE):
            labels_B = torch.full((len(chunk),), label, device=generator.device)
            early.append(generator.invert(chunk, labels_B, 1 - self.strength).cpu())
        values_ND = torch.cat(early).flatten(1)
        mean_D, std_D = values_ND.mean(dim=0), values_ND.std(dim=0, correction=0)
        drawn = (
            mean_D + std_D * torch.randn(per_class, len(mean_D), generator=rng)
            for _ in range(self.groups)
        )
        best_BD = min(drawn, key=lambda group_BD: misfit(group_BD, mean_D, std_D))
        return best_BD.view(per_class, *generator.latent).to(generator.device)


def misfit(group_BD: Tensor, mean_D: Tensor, std_D: Tensor) -> float:
    """How far a group is from a normal distribution: |mean| + |deviation| + |skew| / 10.

    Source: D3HR (arXiv:2505.18399), representative group sampling.
    """
    own_mean_D, own_std_D = group_BD.mean(dim=0), group_BD.std(dim=0, correction=0)
    skew_D = ((group_BD - own_mean_D) / own_std_D.clamp(min=1e-6)).pow(3).mean(dim=0)
    parts = [own_mean_D - mean_D, own_std_D - std_D, 0.1 * skew_D]
    return float(torch.stack([part.norm() for part in parts]).sum())


class Guided(Selection):
    """Samples of a class that are guided while they are made, and chosen afterwards.

    With no scale above 0 and a pool of 1 they are plain samples.

    Source: MGD3, IGD, Minimax diffusion and CaO2, for what each key is from.
    """

    paper: ClassVar[str] = (
        "MGD3, arXiv:2505.18963; IGD, https://openreview.net/forum?id=0whx8MhysK; "
        "Minimax diffusion, arXiv:2311.15529; CaO2, arXiv:2506.22637"
    )
    shows_real: ClassVar[bool] = False
    needs_generator: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    name: Literal["guided"] = "guided"
    mode: float = Field(
        default=0.0, ge=0, description="pull towards a center of k-means each (MGD3); 0: none"
    )
    stop: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the steps from noise after which the pull of mode stops",
    )
    influence: float = Field(
        default=0.0,
        ge=0,
        description="pull towards images whose gradients in the networks of the squeeze stage are "
        "like those of real ones (IGD); 0: none",
    )
    deviation: float = Field(
        default=0.0, ge=0, description="push away from the nearest other sample (IGD); 0: none"
    )
    represent: float = Field(
        default=0.0, ge=0, description="pull towards the farthest real latent (Minimax); 0: none"
    )
    real: int = Field(
        default=64, gt=0, description="real images of a class that influence and represent look at"
    )
    pool: int = Field(default=1, gt=0, le=10_000, description="samples made for each one kept")
    choose: Literal["confident", "unsure"] = Field(
        default="confident",
        description="of a pool: the one that the networks of the squeeze stage are most sure of, "
        "or least among those that they get right (CaO2, for 50 images and more)",
    )

    refine: Refine | None = Field(
        default=None, description="move what is kept a little before it is decoded (CaO2)"
    )

    @model_validator(mode="after")
    def _a_pool_is_chosen_from(self) -> Self:
        if self.pool == 1 and self.choose != "confident":
            raise ValueError(
                "choose: there is one sample to choose from; raise pool, or leave it out"
            )
        return self

    @property
    def needs_squeezed(self) -> bool:
        return self.influence > 0 or self.pool > 1

    def cited(self) -> list[str]:
        used = [
            self.mode > 0,
            self.influence + self.deviation > 0,
            self.represent > 0,
            self.pool > 1 or self.refine is not None,
        ]
        return [paper for paper, own in zip(self.paper.split("; "), used, strict=True) if own]

    def sampling_problems(self, steps: int, *, unconditional: bool) -> Iterator[str]:
        if self.refine is not None:
            yield from self.refine.problems(steps, unconditional=unconditional)

    def of_class(
        self,
        real: RealData,
        label: int,
        per_class: int,
        rng: torch.Generator,
        teacher: Teacher | None = None,
    ) -> Tensor:
        generator, count = generator_of(real, self), self.pool * per_class
        noise_BLhw = generator.start(rng, count)
        modes_BLhw = self._modes(real, label, per_class, generator, rng)
        at_hand = self._guides(real, label, generator, rng, teacher)
        finished = noise_BLhw[:0]
        for places_B in torch.split(torch.arange(count), SAMPLED_AT_ONCE):
            guides = list(at_hand)
            if modes_BLhw is not None:
                own_BLhw = modes_BLhw[places_B % per_class]
                until = time_of_step(generator.times, self.stop)
                guides.append(partial(_to_modes, own_BLhw, self.mode, until))
            if self.deviation > 0:
                guides.append(partial(_apart, finished, self.deviation))
            labels_B = torch.full((len(places_B),), label, device=generator.device)
            made = generator.sample(noise_BLhw[places_B], labels_B, guides)
            finished = torch.cat([finished, made])
        labels_B = torch.full((count,), label, device=generator.device)
        shown_BCHW = generator.show(finished, labels_B)
        if self.pool > 1:
            places_B = self._chosen(real, label, shown_BCHW, teacher)
            finished, shown_BCHW = finished[places_B], shown_BCHW[places_B]
        if self.refine is None:
            return shown_BCHW
        made = self.refine(generator, finished, label, rng)
        return generator.show(made, labels_B[:per_class])

    def _modes(
        self, real: RealData, label: int, per_class: int, generator: Generator, rng: torch.Generator
    ) -> Tensor | None:
        """A center for every place of the class, on the device; None where nothing pulls there."""
        if self.mode == 0:
            return None
        _, latents_NLhw = class_latents(real, label, generator, rng)
        return centers(latents_NLhw, per_class, rng).to(generator.device)

    def _guides(
        self,
        real: RealData,
        label: int,
        generator: Generator,
        rng: torch.Generator,
        teacher: Teacher | None,
    ) -> Iterator[Guide]:
        """The guides that are the same for every batch of samples."""
        if self.represent > 0:
            _, latents_MLhw = class_latents(real, label, generator, rng, self.real)
            yield partial(_to_farthest, latents_MLhw.to(generator.device), self.represent)
        if self.influence > 0:
            networks = present(teacher, self).modules
            images_BCHW = real.class_images(rng, label, self.real)
            gradients = [guidance.gradient_of(each, images_BCHW, label) for each in networks]

            def pull(x_BLhw: Tensor, clean_BLhw: Tensor, time: float) -> Tensor:
                def images_of(x_1Lhw: Tensor) -> Tensor:
                    label_1 = torch.full((1,), label, device=x_1Lhw.device)
                    clean = generator.heads_for(x_1Lhw, time, label_1)
                    space = real.normalization.input_space
                    return space.to_student(generator.decode(clean, label_1))

                return guidance.influence(
                    x_BLhw, images_of, networks, gradients, label, time, self.influence
                )

            yield pull

    def _chosen(
        self, real: RealData, label: int, shown_BCHW: Tensor, teacher: Teacher | None
    ) -> Tensor:
        """Of the pool of every place the one that is asked for: where it stands, on the CPU."""
        space, device = real.normalization.input_space, real.train.labels_N.device
        logits_MBK = present(teacher, self)(space.to_student(shown_BCHW.to(device))).cpu()
        sure_BK = F.log_softmax(logits_MBK, dim=2).mean(dim=0)
        right_B = sure_BK.argmax(dim=1) == label
        logger.info(
            "guided: %.0f%% of %d samples of %s are taken for it",
            100 * right_B.float().mean().item(), len(right_B), real.class_names[label],
        )  # fmt: skip
        score_B = sure_BK[:, label]
        if self.choose == "unsure":
            # wrong ones come last, of them the least wrong first
            score_B = torch.where(right_B, -score_B, score_B - 1e4)
        per_class = len(score_B) // self.pool
        best = score_B.view(self.pool, per_class).argmax(dim=0)
        return best * per_class + torch.arange(per_class)


def time_of_step(times: Sequence[float], share: float) -> float:
    """The time of the first step before which a share of all steps is done."""
    steps = len(times) - 1
    return next(time for step, time in enumerate(times) if step / steps >= share)


def _to_modes(
    modes: Tensor, scale: float, stop: float, x: Tensor, clean: Tensor, time: float
) -> Tensor:
    return guidance.mode(clean, modes, time, scale, stop)


def _apart(finished: Tensor, scale: float, x: Tensor, clean: Tensor, time: float) -> Tensor:
    return guidance.deviation(x, finished, time, scale)


def _to_farthest(real: Tensor, scale: float, x: Tensor, clean: Tensor, time: float) -> Tensor:
    return guidance.represent(clean, real, time, scale)
