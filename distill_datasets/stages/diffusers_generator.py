"""A generator that others have trained, by diffusers: DiT by classes, Stable Diffusion by text.

A model knows other classes than the source, and a recipe has to say how it is told them: `map` to
classes that it knows, `finetune` new ones, or describe them by `prompts`.

Shape suffixes: K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator

from distill_datasets.errors import RecipeError, did_you_mean, refuse
from distill_datasets.files.artifacts import fingerprint
from distill_datasets.hub.errors import fetch_errors
from distill_datasets.hub.pinned import model_file
from distill_datasets.models.generator import Generator
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run
from distill_datasets.stages.generator import GeneratorPart, bytes_of, sha256_of_modules
from distill_datasets.stages.generator_training import (
    Labeled,
    MinimaxPhase,
    flow_loss,
    phase_done,
    source_latents,
    train_phase,
)
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import nn

    from distill_datasets.models.diffusion import DiffusionFlow, KlLatents
    from distill_datasets.stages.source import LoadedSource

VERSION = 1
INDEX, AUTOENCODER = "model_index.json", "vae/config.json"
TOLD = {"DiTPipeline": ("map", "finetune"), "StableDiffusionPipeline": ("prompts",)}
"""How models of a kind can be told the classes of a source."""


class DiffusersGenerator(GeneratorPart):
    """DiT or Stable Diffusion: a folder that diffusers writes, or a model of the Hub."""

    paper: ClassVar[str] = (
        "DiT, arXiv:2212.09748; latent diffusion, arXiv:2112.10752; "
        "Minimax diffusion, arXiv:2311.15529"
    )
    name: Literal["diffusers"] = "diffusers"
    model: str = Field(
        min_length=1,
        description="a folder of this machine, or Hub id org/name or org/name@revision: a "
        "DiTPipeline (facebook/DiT-XL-2-256) or a StableDiffusionPipeline, in safetensors",
    )
    classes: Literal["map", "finetune", "prompts"] = Field(
        description="how the model is told the source's classes: as classes that it knows, as new "
        "ones that are learned (with minimax), or by prompts"
    )
    ids: list[int] | Literal["same"] | None = Field(
        default=None,
        description="with map: the model's number of every class, in the source's order; same: the "
        "source's own; null finds them by their names",
    )
    prompt: str = Field(
        default="a photo of a {}", description="with prompts: what is said of a class; {} its name"
    )
    negative: str = Field(default="", description="with prompts: what guidance moves away from")
    size: int | None = Field(
        default=None,
        gt=0,
        multiple_of=8,
        description="side of its images, in px; null: the model's",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the model's weights"
    )
    minimax: MinimaxPhase | None = Field(
        default=None,
        description="fine-tune biases and class embeddings (DiffFit) towards samples that cover "
        "their class; real: 0 and apart: 0 leave the plain loss",
    )
    steps: int = Field(default=50, gt=0, le=1000, description="DDIM steps from noise to a latent")
    guidance: float = Field(
        default=4.0, ge=0, le=100, description="scale of classifier-free guidance"
    )

    @model_validator(mode="after")
    def _keys_belong_to_the_way_of_telling(self) -> Self:
        if self.classes == "finetune" and self.minimax is None:
            raise ValueError(
                "minimax: missing; classes: finetune learns embeddings of new classes, for example "
                "minimax: {epochs: 8, batch: 8}"
            )
        if self.ids is not None and self.classes != "map":
            raise ValueError(f"ids: got them with classes: {self.classes}, expected map")
        if self.classes == "prompts" and "{}" not in self.prompt:
            raise ValueError(
                f"prompt: got {self.prompt!r}, expected {{}} where a class's name goes"
            )
        if self.minimax is not None and self.precision != "float32":
            raise ValueError("precision: fine-tuning (minimax) wants float32")
        return self

    def cited(self) -> list[str]:
        dit, latent, minimax = self.paper.split("; ")
        own = [latent] if self.classes == "prompts" else [dit]
        return own if self.minimax is None else [*own, minimax]

    def weights(self, shape: Shape) -> None:
        return None

    def layers(self, shape: Shape) -> int:
        config = json.loads(self._file(AUTOENCODER).read_text(encoding="utf-8"))
        return 1 + len(config["up_block_types"])

    def work(self, shape: Shape, rows: int) -> float:
        return 0.0

    def problems(self, shape: Shape, names: Sequence[str] | None) -> Iterator[str]:
        """Looks at the small file that says what a model is, which is fetched for it."""
        try:
            index = self._index()
            ids = self._ids(index, shape.k, names) if names is not None else None
        except RecipeError as error:
            yield str(error)
            return
        libraries = ["diffusers", *(["transformers"] if self.classes == "prompts" else [])]
        absent = [library for library in libraries if find_spec(library) is None]
        if absent:
            yield (
                f"generator: 'diffusers' needs {' and '.join(absent)}; run `pip install "
                "'distill_datasets[diffusers]'`"
            )
        if ids is not None and len(ids) != shape.k:
            yield f"generator.ids: got {len(ids)} of them, expected {shape.k}, one for each class"

    def _place(self) -> tuple[str, dict[str, Any]]:
        """What diffusers reads: a folder, or a Hub id with its revision."""
        if Path(self.model).expanduser().is_dir():
            return str(Path(self.model).expanduser()), {}
        from distill_datasets.models.weights import HUB_ID

        hub = HUB_ID.fullmatch(self.model)
        if hub is None:
            raise RecipeError(
                f"generator.model: no folder {self.model}; expected one that diffusers wrote, or a "
                "Hub model as org/name or org/name@revision"
            )
        return hub["model"], {"revision": hub["revision"]} if hub["revision"] else {}

    def _file(self, name: str) -> Path:
        """A small file of the model.

        Raises:
            RecipeError: it is not there.
        """
        place, options = self._place()
        folder = Path(place)
        file = folder / name
        if not folder.is_dir():
            file = model_file(place, options.get("revision"), name, "generator.model")
        if not file.is_file():
            raise RecipeError(
                f"generator.model: {place} has no {name}; expected a folder that diffusers wrote"
            )
        return file

    def _index(self) -> dict[str, Any]:
        """What the model says that it is.

        Raises:
            RecipeError: it is not there, of another kind, or cannot be told classes in this way.
        """
        index: dict[str, Any] = json.loads(self._file(INDEX).read_text(encoding="utf-8"))
        kind = index.get("_class_name")
        if kind not in TOLD:
            raise RecipeError(
                f"generator.model: {self.model} is a {kind}, expected {' or '.join(TOLD)}"
            )
        if self.classes not in TOLD[kind]:
            raise RecipeError(
                f"generator.classes: got {self.classes}, and {self.model} is a {kind}, which is "
                f"told classes by {' or '.join(TOLD[kind])}"
            )
        return index

    def _ids(self, index: dict[str, Any], classes: int, names: Sequence[str]) -> list[int] | None:
        """The model's number of every class; None where the source's own numbers are new to it."""
        if self.classes != "map":
            return None
        labels = {int(key): str(said) for key, said in (index.get("id2label") or {}).items()}
        given = list(range(classes)) if self.ids == "same" else self.ids
        if given is not None:
            unknown = [one for one in given if labels and one not in labels]
            if unknown:
                raise RecipeError(
                    f"generator.ids: {self.model} has no class {unknown[0]}; expected 0 to "
                    f"{max(labels)}"
                )
            return given
        known = _by_word(labels)
        found = []
        for name in names:
            spelled = [name, *name.split(",")]
            number = next((known[_plain(word)] for word in spelled if _plain(word) in known), None)
            if number is None:
                raise RecipeError(
                    f"generator.classes: {self.model} knows no class {name!r}, or several; "
                    f"{did_you_mean(_plain(name), known)}; give generator.ids, or classes: finetune"
                )
            found.append(number)
        return found

    def make(self, source: LoadedSource, run: Run) -> Generator:
        from distill_datasets.models.diffusion import times_of

        real = source.real
        refuse(self.problems(real.shape, real.class_names))
        with told(self.model):
            latents, flow, latent = self._loaded(source, run)
        if self.minimax is not None:
            self._tune(self.minimax, latents, flow, source, run)
        return Generator(
            latents=frozen_latents(latents),
            velocity=flow.eval().requires_grad_(False),
            times=times_of(flow.get_buffer("cumulative_S").cpu(), self.steps),
            guidance=self.guidance,
            shape=real.shape,
            latent=latent,
            device=run.runtime.device,
            fingerprint=fingerprint(
                [VERSION, sha256_of_modules(latents, flow), self.steps, self.guidance, self.size]
            ),
            bytes=bytes_of(latents, flow),
        )

    def _loaded(
        self, source: LoadedSource, run: Run
    ) -> tuple[KlLatents, DiffusionFlow, tuple[int, int, int]]:
        from distill_datasets.models import diffusion

        place, options = self._place()
        index, real = self._index(), source.real
        kind, classes = index["_class_name"], real.shape.k
        reading = {**options, "use_safetensors": True}
        reading["torch_dtype"] = getattr(torch, self.precision)
        network: Any = diffusion.load_network(place, kind, reading)
        autoencoder: Any = diffusion.load_autoencoder(place, reading)
        cumulative_S, prediction = diffusion.load_schedule(place, options)
        factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        side = self.size or network.config.sample_size * factor
        classes_K = prompts_KTD = None
        ids = self._ids(index, classes, real.class_names)
        if self.classes == "prompts":
            said = [self.prompt.format(name) for name in real.class_names]
            prompts_KTD = diffusion.embed(place, [*said, self.negative], options)
        elif ids is not None:
            classes_K = torch.tensor([*ids, network.config.num_embeds_ada_norm])
        else:
            diffusion.new_classes(network, classes, rng_for(run.seed, "generator", "classes"))
            classes_K = torch.arange(classes + 1)
        flow = diffusion.DiffusionFlow(network, cumulative_S, prediction, classes_K, prompts_KTD)
        device = run.runtime.device
        latents = diffusion.KlLatents(autoencoder, real.shape, side).to(device)
        latent = (autoencoder.config.latent_channels, side // factor, side // factor)
        return frozen_latents(latents), flow.to(device).eval(), latent

    def _tune(
        self,
        phase: MinimaxPhase,
        latents: KlLatents,
        flow: nn.Module,
        source: LoadedSource,
        run: Run,
    ) -> None:
        from distill_datasets.models.diffusion import tune_little

        real, before = source.real, sha256_of_modules(latents, flow)
        encoded = run.folder / f"latents-{fingerprint([VERSION, before, source.fingerprint])}"
        folder = run.folder / f"minimax-{fingerprint([phase.deciding, encoded.name, run.seed])}"

        def train() -> None:
            tune_little(flow)
            rows_N = source_latents(latents, real, encoded, run)
            examples = Labeled(rows_N, real.train.labels_N, real.shape.k, phase.batch)
            loss_of = flow_loss(0.0, phase, phase.precision)
            train_phase("minimax", phase, flow, examples, loss_of, folder, run)

        phase_done("minimax", flow, folder, run, train)


def frozen_latents(latents: KlLatents) -> KlLatents:
    """An autoencoder in eval mode, none of whose weights is trained."""
    latents.eval().requires_grad_(False)
    return latents


@contextmanager
def told(model: str) -> Iterator[None]:
    """Tell in a sentence why diffusers could not read a model."""
    # what is not a config or not of safetensors is told by an error of one of these kinds
    kinds: tuple[type[Exception], ...] = (*fetch_errors(), ValueError, RuntimeError)
    try:
        yield
    except kinds as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise RecipeError(
            f"generator.model: cannot get {model} ({first}); check the name and the connection, or "
            "give a folder of this machine, in safetensors"
        ) from error


def _by_word(labels: dict[int, str]) -> dict[str, int]:
    """The number of every class by its whole label and by each of its words, where one has it."""
    numbers: dict[str, set[int]] = {}
    for number, said in labels.items():
        for word in {said, *said.split(",")}:
            numbers.setdefault(_plain(word), set()).add(number)
    return {word: min(own) for word, own in numbers.items() if len(own) == 1}


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")
