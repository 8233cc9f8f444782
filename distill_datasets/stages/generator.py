"""The stage that makes a generator ready: trained on the source, drawn at random, or fetched.

Its folders lie beside those of recipes, since what they hold depends on the source, the seed and
the section alone: recipes that name the same generator train it once.

Shape suffixes: K classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from distill_datasets.config import Part, part
from distill_datasets.files.artifacts import fingerprint, sha256_tensors
from distill_datasets.models.flops import WEIGHT_GRADIENT, flops_of
from distill_datasets.models.generator import Generator, halvings
from distill_datasets.models.initialization import initialize
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run
from distill_datasets.stages.generator_training import (
    AutoencoderPhase,
    FlowPhase,
    Labeled,
    MinimaxPhase,
    autoencoder_loss,
    flow_loss,
    phase_done,
    source_latents,
    standardize,
    train_phase,
)
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import nn

    from distill_datasets.models.flow import Autoencoder
    from distill_datasets.stages.source import LoadedSource

VERSION = 1


class GeneratorPart(Part, ABC):
    """The axis of generators: where one comes from, and how it samples."""

    makes_images: ClassVar[bool] = True
    """False where it only decodes, and what it decodes was never trained to look like an image."""

    @property
    def unconditional(self) -> bool:
        """Whether its flow was shown latents without their class, so that it can be asked so."""
        return True

    steps: int = Field(default=16, gt=0, le=1000, description="Euler steps from noise to a latent")
    guidance: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="scale of classifier-free guidance; 1 asks for the class alone, more "
        "exaggerates it, and all but 1 take twice the time",
    )

    @abstractmethod
    def make(self, source: LoadedSource, run: Run) -> Generator:
        """The generator on the device; what an earlier run has made of it is not made again.

        Raises:
            DistillError: it cannot be had, or its training fails.
        """

    @abstractmethod
    def weights(self, shape: Shape) -> int | None:
        """How many weights it has; None where that shows only when it is there."""

    @abstractmethod
    def layers(self, shape: Shape) -> int:
        """How many layers of its decoder have features that a canvas can train.

        Raises:
            RecipeError: what tells cannot be read.
        """

    def layer_problems(self, layer: int, shape: Shape) -> Iterator[str]:
        """Why its decoder has no such layer, for the user; 0 stands for the latents."""
        if layer and layer > (last := self.layers(shape)):
            valid = ", ".join(map(str, range(1, last + 1)))
            yield (
                f"distill.canvas.layer: got {layer}, and the decoder of generator {self.name!r} "
                f"has features after layers {valid}; take one of them, or 0 for latents"
            )

    @abstractmethod
    def work(self, shape: Shape, rows: int) -> float:
        """Floating-point operations of its training, counted as in `Objective.work`."""

    def problems(self, shape: Shape, names: Sequence[str] | None) -> Iterator[str]:
        """Why it does not suit a source, for the user; `names` are the classes where known."""
        yield from ()


GeneratorField = Annotated[SerializeAsAny[GeneratorPart], part("generators")]


def run_generator(part: GeneratorPart | None, source: LoadedSource, run: Run) -> None:
    """Put the generator of a recipe into `source.real.generator`.

    Args:
        part: the section `generator`; None leaves it out.
        source: what it is trained on.
        run: seed, folder, processes and device; the folder is shared by all recipes.

    Raises:
        DistillError: it cannot be had, or its training fails.
    """
    source.real.generator = None if part is None else part.make(source, run)


def even_times(steps: int) -> tuple[float, ...]:
    """The times of so many equal steps."""
    return tuple(step / steps for step in range(steps + 1))


def bytes_of(*modules: nn.Module) -> int:
    """Of all weights and buffers."""
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def sha256_of_modules(*modules: nn.Module) -> str:
    """Of all weights and buffers, by their names."""
    return sha256_tensors(
        tensor.cpu() for module in modules for _, tensor in sorted(module.state_dict().items())
    )


class TrainedGenerator(GeneratorPart):
    """A variational autoencoder, and a flow of its latents for every class, trained on the source.

    Stable Diffusion in small: with the default widths a million weights that learn digits in
    minutes of one CPU core.
    """

    paper: ClassVar[str] = (
        "flow matching, arXiv:2210.02747; VAE, arXiv:1312.6114; Minimax diffusion, arXiv:2311.15529"
    )
    name: Literal["trained"] = "trained"
    autoencoder: AutoencoderPhase
    flow: FlowPhase
    minimax: MinimaxPhase | None = Field(
        default=None,
        description="fine-tune the flow towards samples that cover their class; null: do not",
    )

    @property
    def unconditional(self) -> bool:
        return self.flow.drop > 0

    def cited(self) -> list[str]:
        own = self.paper.split("; ")
        return own if self.minimax is not None else own[:2]

    @model_validator(mode="after")
    def _guidance_knows_no_class(self) -> Self:
        if self.guidance != 1 and not self.flow.drop:
            raise ValueError(
                f"guidance: got {self.guidance}, which asks the flow for no class as well, and "
                "flow.drop: 0 never shows it without one; raise flow.drop, or set guidance to 1"
            )
        return self

    def make(self, source: LoadedSource, run: Run) -> Generator:
        autoencoder, folder = self._autoencoder(source, run)
        flow = self._flow(autoencoder, folder, source, run)
        return Generator(
            latents=autoencoder,
            velocity=flow,
            times=even_times(self.steps),
            guidance=self.guidance,
            shape=source.real.shape,
            latent=latent_of(source.real.shape, self.autoencoder),
            device=run.runtime.device,
            fingerprint=fingerprint(
                [VERSION, sha256_of_modules(autoencoder, flow), self.steps, self.guidance]
            ),
            bytes=bytes_of(autoencoder, flow),
        )

    def _autoencoder(self, source: LoadedSource, run: Run) -> tuple[Autoencoder, Path]:
        phase, real = self.autoencoder, source.real
        identity = fingerprint([VERSION, phase.deciding, source.fingerprint, run.seed])
        folder = run.folder / f"autoencoder-{identity}"
        module = fresh_autoencoder(real.shape, phase, rng_for(run.seed, "autoencoder", "network"))
        module = module.to(run.runtime.device)
        examples = Labeled(real.train.images_NCHW, real.train.labels_N, real.shape.k)
        train = partial(
            train_phase,
            "autoencoder", phase, module, examples,
            autoencoder_loss(phase.divergence, phase.precision), folder, run,
            finish=partial(standardize, module, real),
        )  # fmt: skip
        phase_done("autoencoder", module, folder, run, train)
        return module, folder

    def _flow(
        self, autoencoder: Autoencoder, encoded: Path, source: LoadedSource, run: Run
    ) -> nn.Module:
        from distill_datasets.models.flow import FlowUNet

        phase, real = self.flow, source.real
        identity = fingerprint([VERSION, phase.deciding, encoded.name, run.seed])
        folder = run.folder / f"flow-{identity}"
        module: nn.Module = FlowUNet(self.autoencoder.channels, phase.width, real.shape.k)
        initialize(module, rng_for(run.seed, "flow", "network"))
        module = module.to(run.runtime.device)

        def examples(by_class: int | None = None) -> Labeled:
            rows_N = source_latents(autoencoder, real, encoded, run, mirror=phase.mirror)
            labels_N = real.train.labels_N.repeat(2 if phase.mirror else 1)
            return Labeled(rows_N, labels_N, real.shape.k, by_class)

        def train() -> None:
            train_phase(
                "flow", phase, module, examples(), flow_loss(phase.drop, precision=phase.precision),
                folder, run, ema=phase.ema,
            )  # fmt: skip

        phase_done("flow", module, folder, run, train)
        tuning = self.minimax
        if tuning is None:
            return module
        tuned = fingerprint([VERSION, tuning.deciding, folder.name, run.seed])

        def tune() -> None:
            module.train().requires_grad_()
            loss_of = flow_loss(0.0, tuning, tuning.precision)
            train_phase(
                "minimax", tuning, module, examples(tuning.batch), loss_of,
                run.folder / f"minimax-{tuned}", run,
            )  # fmt: skip

        phase_done("minimax", module, run.folder / f"minimax-{tuned}", run, tune)
        return module

    def weights(self, shape: Shape) -> int:
        autoencoder, flow = self._on_meta(shape)
        return sum(each.numel() for module in (autoencoder, flow) for each in module.parameters())

    def layers(self, shape: Shape) -> int:
        return halvings(shape)

    def _on_meta(self, shape: Shape) -> tuple[Autoencoder, nn.Module]:
        from distill_datasets.models.flow import Autoencoder, FlowUNet

        with torch.device("meta"):
            return (
                Autoencoder(shape, self.autoencoder.channels, self.autoencoder.width),
                FlowUNet(self.autoencoder.channels, self.flow.width, shape.k),
            )

    def work(self, shape: Shape, rows: int) -> float:
        autoencoder, flow = self._on_meta(shape)
        with torch.device("meta"):
            image, point = torch.empty(1, shape.c, shape.h, shape.w), torch.empty(1)
            label = torch.zeros(1, dtype=torch.long)
            latent = torch.empty(1, *latent_of(shape, self.autoencoder))
            encoding = flops_of(lambda: autoencoder.encode(image))
            coding = encoding + flops_of(lambda: autoencoder.decode(latent, label))
            moving = flops_of(lambda: flow(latent, point, label))
        tuned = 0 if self.minimax is None else self.minimax.epochs
        flips = 2 if self.flow.mirror else 1
        steps = self.autoencoder.epochs * coding + (self.flow.epochs * flips + tuned) * moving
        return rows * (WEIGHT_GRADIENT * steps + flips * encoding)


class RandomGenerator(GeneratorPart):
    """An autoencoder whose weights are drawn and never trained: what a generator's shape is worth.

    Source: GLaD (arXiv:2305.01649), whose random generators still beat pixels.
    """

    makes_images: ClassVar[bool] = False
    paper: ClassVar[str] = "GLaD, arXiv:2305.01649"
    name: Literal["random"] = "random"
    channels: int = Field(default=8, gt=0, le=4096, description="of a latent")
    width: int = Field(
        default=32, gt=0, le=4096, multiple_of=8, description="channels of its first layer"
    )

    def make(self, source: LoadedSource, run: Run) -> Generator:
        phase = AutoencoderPhase(epochs=1, channels=self.channels, width=self.width)
        shape = source.real.shape
        module = fresh_autoencoder(shape, phase, rng_for(run.seed, "generator", "random"))
        module.to(run.runtime.device).eval().requires_grad_(False)
        return Generator(
            latents=module,
            velocity=None,
            times=even_times(self.steps),
            guidance=self.guidance,
            shape=shape,
            latent=latent_of(shape, phase),
            device=run.runtime.device,
            fingerprint=fingerprint([VERSION, sha256_of_modules(module)]),
            bytes=bytes_of(module),
        )

    def weights(self, shape: Shape) -> int:
        from distill_datasets.models.flow import Autoencoder

        with torch.device("meta"):
            module = Autoencoder(shape, self.channels, self.width)
        return sum(each.numel() for each in module.parameters())

    def layers(self, shape: Shape) -> int:
        return halvings(shape)

    def work(self, shape: Shape, rows: int) -> float:
        return 0.0


def fresh_autoencoder(shape: Shape, phase: AutoencoderPhase, rng: torch.Generator) -> Autoencoder:
    """An autoencoder with fresh weights, on the CPU."""
    from distill_datasets.models.flow import Autoencoder

    module = Autoencoder(shape, phase.channels, phase.width)
    initialize(module, rng)
    return module


def latent_of(shape: Shape, phase: AutoencoderPhase) -> tuple[int, int, int]:
    """The shape of a latent."""
    from distill_datasets.models.flow import latent_sides

    return (phase.channels, *latent_sides(shape))
