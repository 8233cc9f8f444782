"""Images that a generator decodes from trained latents: the canvas of GLaD and LD3M.

What is trained are latents; what is published are the images that they decode to, as pixels, so
that nobody needs the generator to use them. The gradient of an objective stops at the images, and
goes on through the decoder some images at a time,

    dL/dz = sum over chunks of (dx_chunk/dz)^T dL/dx_chunk,

where every chunk is decoded a second time for it, so that the decoder's memory is that of a chunk.
Features inside the decoder may be trained in place of latents: more numbers, and less of the
generator between them and the image.

Shape suffixes: N examples, B examples asked for, K classes, C channels and H W pixels of an image,
L channels and h w sides of a latent, or of features inside the decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PrivateAttr, SerializeAsAny, model_validator

from distill_datasets.canvases.canvas import (
    Canvas,
    CanvasSize,
    CanvasStart,
    Cells,
    Tensors,
    check_count,
    initial,
)
from distill_datasets.config import part
from distill_datasets.errors import RecipeError
from distill_datasets.selection.random import Real
from distill_datasets.selection.selection import Selection, Teacher
from distill_datasets.types import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from distill_datasets.data.real import RealData
    from distill_datasets.models.generator import Generator


class Latent(Canvas):
    """Trained latents of the generator, an image each.

    Latents have a variance of about one, so that step sizes are shares of that. With `through` they
    pass steps of the flow before they are decoded, which keeps images among those that it makes.
    With `layer` the features that the initial latents have there are trained instead, in units of
    their deviation.
    """

    examples_are_stored: ClassVar[bool] = True
    needs_generator: ClassVar[bool] = True
    paper: ClassVar[str] = "GLaD, arXiv:2305.01649; LD3M, arXiv:2403.03881"
    name: Literal["latent"] = "latent"
    ipc: int = Field(ge=1, le=100_000, description="images per class")
    init: Annotated[SerializeAsAny[Selection], part("selections")] | None = Field(
        default=Real(),
        description="images whose latents are where it starts; null: latents of noise",
    )
    chunk: int = Field(
        default=16, gt=0, description="images that are decoded, and differentiated, at once"
    )
    through: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="steps of the flow that latents pass from noise (LD3M: 10); 0: none",
    )
    layer: int = Field(
        default=0,
        ge=0,
        le=100,
        description="of the decoder, after which features are trained (GLaD), 1 being the first "
        "and a later one nearer to pixels; 0: latents",
    )
    _generator: Generator | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _a_flow_ends_before_the_decoder(self) -> Self:
        if self.layer and self.through:
            raise ValueError(
                f"layer: got {self.layer} with through: {self.through}, and the flow ends at "
                "latents, before every layer; set one of them to 0"
            )
        return self

    @property
    def needs_squeezed(self) -> bool:
        return self.init is not None and self.init.needs_squeezed

    def cited(self) -> list[str]:
        own = self.paper.split("; ")[: 2 if self.through else 1]
        chosen = [] if self.init is None or self.init.effort != "file" else self.init.papers()
        return [*own, *chosen]

    @property
    def samples(self) -> bool:
        return self.through > 0

    @property
    def decoder_layer(self) -> int:
        return self.layer

    def with_generator(self, generator: Generator) -> Latent:
        own = self.model_copy()
        own._generator = generator
        return own

    def _decoding(self) -> Generator:
        if self._generator is None:
            raise RecipeError(
                "distill.canvas: 'latent' asks a generator; add a section generator, for example "
                "generator: {name: trained, autoencoder: {epochs: 5}, flow: {epochs: 20}}"
            )
        return self._generator

    def size(self, shape: Shape) -> CanvasSize:
        count = shape.k * self.ipc
        check_count(count, "ipc")
        return CanvasSize([(shape.h, shape.w)] * count, count)

    def shown(self, shape: Shape, real: RealData | None = None) -> Cells:
        classes_N = torch.arange(shape.k).repeat_interleave(self.ipc)
        return Cells(torch.arange(len(classes_N)), classes_N)

    def start(
        self, real: RealData, rng: torch.Generator, teacher: Teacher | None = None
    ) -> CanvasStart:
        generator, cells = self._decoding(), self.shown(real.shape)
        if self.init is None:
            latents_NLhw = torch.randn(len(cells.classes_G), *generator.latent, generator=rng)
        else:
            counts_K = [self.ipc] * real.shape.k
            latents_NLhw = generator.encode(initial(self.init, real, counts_K, rng, teacher))
        constants = {"labels_N": cells.classes_G}
        if self.through:
            constants["noise_NLhw"] = torch.randn(latents_NLhw.shape, generator=rng)
        if self.layer:
            features_NLhw = generator.inner(latents_NLhw, cells.classes_G, self.layer)
            constants["scale"] = features_NLhw.std()
            latents_NLhw = features_NLhw / constants["scale"]
        return CanvasStart({"latents_NLhw": latents_NLhw}, constants, cells)

    def decode(self, tensors: Tensors, index_B: Tensor) -> Tensor:
        generator, own = self._decoding(), tensors["latents_NLhw"]
        names = ["latents_NLhw", "labels_N", *(["noise_NLhw"] if self.through else [])]
        rows = [tensors[name].index_select(0, index_B).to(generator.device) for name in names]
        scale = tensors["scale"].to(generator.device) if self.layer else 1.0

        def decode(latents_BLhw: Tensor, labels_B: Tensor, *noise: Tensor) -> Tensor:
            for noise_BLhw in noise:
                latents_BLhw = generator.blended(latents_BLhw, noise_BLhw, labels_B, self.through)
            if self.layer:
                latents_BLhw = latents_BLhw * scale
            return generator.decode(latents_BLhw, labels_B, self.layer)

        return in_chunks(decode, rows, self.chunk).to(own.device)

    def stored(self, tensors: Tensors) -> list[Tensor]:
        every_N = torch.arange(len(tensors["labels_N"]), device=tensors["labels_N"].device)
        with torch.no_grad():
            return list(self.decode(tensors, every_N))


def in_chunks(decode: Callable[..., Tensor], rows: Sequence[Tensor], chunk: int) -> Tensor:
    """What `decode` makes of rows of several tensors, so many rows at once.

    Only the rows and the images are kept for a gradient, and a chunk is decoded again for its own.

    Source: GLaD (arXiv:2305.01649).
    """
    from torch.utils.checkpoint import checkpoint

    chunks = zip(*(torch.split(each, chunk) for each in rows), strict=True)
    return torch.cat(
        [
            checkpoint(decode, *each, use_reentrant=False, preserve_rng_state=False)
            for each in chunks
        ]
    )
