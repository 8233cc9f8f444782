"""Models of diffusion from the library diffusers, as a flow of latents.

A model of diffusion sees z_s = sqrt(a_s) z + sqrt(1 - a_s) e at a whole step s and predicts the
noise e. A point of the straight flow, x_t = t z + (1 - t) e, is the same point in other units:

    a = t^2 / (t^2 + (1 - t)^2),   z_s = x_t / sqrt(t^2 + (1 - t)^2),

so that one network serves both, and an Euler step from the time of s to that of s' is a step of
DDIM (arXiv:2010.02502) from s to s'.

Shape suffixes: B a batch, C channels and H W pixels of an image, L channels and h w sides of a
latent, K classes, T tokens and D features of a prompt, S steps of the diffusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill_datasets.errors import RecipeError
from distill_datasets.types import Shape

PREDICTIONS = ("epsilon", "v_prediction")
FOLDERS = {"DiTPipeline": "transformer", "StableDiffusionPipeline": "unet"}
"""Kinds of models, and where in their folder the network lies."""


class KlLatents(nn.Module):
    """The autoencoder of a model of diffusion, for images of any size and channels.

    Images are resized to the side that the model makes; what it makes is resized back.
    """

    def __init__(self, autoencoder: nn.Module, shape: Shape, side: int) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self._shape, self._side = shape, side
        config: Any = autoencoder.config
        self._scale, self._shift = config.scaling_factor, config.shift_factor or 0.0

    def encode(self, pixels_BCHW: Tensor) -> Tensor:
        """Latents (B, L, h, w), the mean of their distribution, as the model was trained on."""
        size = (self._side, self._side)
        colors = pixels_BCHW.expand(-1, 3, -1, -1)
        if tuple(colors.shape[2:]) != size:
            colors = F.interpolate(colors, size, mode="bicubic", antialias=True).clamp(0, 1)
        found = self.autoencoder.encode((2 * colors - 1).to(self.autoencoder.dtype))
        latents: Tensor = (found.latent_dist.mode().float() - self._shift) * self._scale
        return latents

    def inner(self, latents_BLhw: Tensor, labels_B: Tensor, layer: int) -> Tensor:
        """Features after a layer: 1 is the middle block, each later one a block towards pixels."""
        raw = (latents_BLhw / self._scale + self._shift).to(self.autoencoder.dtype)
        if self.autoencoder.post_quant_conv is not None:
            raw = self.autoencoder.post_quant_conv(raw)
        decoder = self.autoencoder.decoder
        maps: Tensor = decoder.mid_block(decoder.conv_in(raw))
        for block in decoder.up_blocks[: layer - 1]:
            maps = block(maps)
        return maps.float()

    def decode(self, maps_BLhw: Tensor, labels_B: Tensor, layer: int = 0) -> Tensor:
        """Pixels in [0, 1], (B, C, H, W); the class says nothing that the latents do not."""
        if layer:
            colors = self._after(maps_BLhw.to(self.autoencoder.dtype), layer).float()
        else:
            raw = maps_BLhw / self._scale + self._shift
            colors = self.autoencoder.decode(raw.to(self.autoencoder.dtype)).sample.float()
        colors = (colors / 2 + 0.5).clamp(0, 1)
        size = (self._shape.h, self._shape.w)
        if tuple(colors.shape[2:]) != size:
            colors = F.interpolate(colors, size, mode="bilinear", antialias=True)
        shown: Tensor = colors if self._shape.c == 3 else colors.mean(dim=1, keepdim=True)
        return shown

    def _after(self, maps_BLhw: Tensor, layer: int) -> Tensor:
        decoder = self.autoencoder.decoder
        for block in decoder.up_blocks[layer - 1 :]:
            maps_BLhw = block(maps_BLhw)
        colors: Tensor = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(maps_BLhw)))
        return colors


class DiffusionFlow(nn.Module):
    """A network that predicts noise, or v, as a velocity.

    Its layers stay in eval mode when it is trained: they would drop classes out by draws of torch's
    own, and the training drops them out itself.
    """

    def __init__(
        self,
        network: nn.Module,
        cumulative_S: Tensor,
        prediction: str,
        classes_K: Tensor | None = None,
        prompts_KTD: Tensor | None = None,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise RecipeError(
                f"generator.model: predicts {prediction!r}, expected one of {PREDICTIONS}; choose "
                "another model"
            )
        self.network: Any = network
        self._prediction = prediction
        self.register_buffer("cumulative_S", cumulative_S.float())
        self.register_buffer("classes_K", classes_K)
        self.register_buffer("prompts_KTD", prompts_KTD)

    def train(self, mode: bool = True) -> DiffusionFlow:
        """Leaves everything in eval mode."""
        super().train(False)
        return self

    def forward(self, x_BLhw: Tensor, times_B: Tensor, labels_B: Tensor) -> Tensor:
        """Velocities (B, L, h, w); the last label is that of no class, or of no prompt."""
        time = times_B.clamp(min=1e-4)[:, None, None, None]
        norm = (time.square() + (1 - time).square()).sqrt()
        signal, noise = time / norm, (1 - time) / norm
        z_BLhw = x_BLhw / norm
        step_B = self.steps(signal.flatten().square())
        said = self._ask(z_BLhw, step_B, labels_B)
        e_BLhw = said if self._prediction == "epsilon" else signal * said + noise * z_BLhw
        return (z_BLhw - noise * e_BLhw) / signal - e_BLhw

    def steps(self, cumulative_B: Tensor) -> Tensor:
        """The steps of the diffusion whose share of signal is nearest."""
        all_S = self.get_buffer("cumulative_S")
        # by the log of signal to noise, which is even over the steps
        ratio_S, ratio_B = torch.logit(all_S, eps=1e-7), torch.logit(cumulative_B, eps=1e-7)
        return (ratio_B[:, None] - ratio_S[None]).abs().argmin(dim=1)

    def _ask(self, z_BLhw: Tensor, step_B: Tensor, labels_B: Tensor) -> Tensor:
        z_BLhw = z_BLhw.to(self.network.dtype)
        if self.prompts_KTD is not None:
            prompts = self.get_buffer("prompts_KTD")[labels_B].to(self.network.dtype)
            said = self.network(z_BLhw, step_B, encoder_hidden_states=prompts).sample
        else:
            own = self.get_buffer("classes_K")[labels_B]
            said = self.network(z_BLhw, timestep=step_B, class_labels=own).sample
        # some predict their variance in further channels
        found: Tensor = said[:, : z_BLhw.shape[1]].float()
        return found


def times_of(cumulative_S: Tensor, steps: int) -> tuple[float, ...]:
    """The times of evenly spaced steps of the diffusion, the noisiest first, and 1.

    Source: trailing steps, arXiv:2305.08891.
    """
    total = len(cumulative_S)
    chosen = [round(total - turn * total / steps) - 1 for turn in range(steps)]
    signal = cumulative_S.double()[chosen].sqrt()
    noise = (1 - cumulative_S.double()[chosen]).sqrt()
    return (*(signal / (signal + noise)).tolist(), 1.0)


def load_autoencoder(place: str, options: dict[str, Any]) -> nn.Module:
    """The autoencoder of a model: a folder of this machine or a Hub id."""
    import diffusers

    found: nn.Module = diffusers.AutoencoderKL.from_pretrained(place, subfolder="vae", **options)
    return found


def load_network(place: str, kind: str, options: dict[str, Any]) -> nn.Module:
    """The network that predicts noise of a model of a kind."""
    import diffusers

    cls = {
        "DiTPipeline": diffusers.DiTTransformer2DModel,
        "StableDiffusionPipeline": diffusers.UNet2DConditionModel,
    }[kind]
    found: nn.Module = cls.from_pretrained(place, subfolder=FOLDERS[kind], **options)
    return found


def load_schedule(place: str, options: dict[str, Any]) -> tuple[Tensor, str]:
    """The share of signal after every step (S,), and what the network predicts."""
    import diffusers

    scheduler = diffusers.DDIMScheduler.from_pretrained(place, subfolder="scheduler", **options)
    return scheduler.alphas_cumprod, scheduler.config.prediction_type


@torch.no_grad()
def embed(place: str, prompts: Sequence[str], options: dict[str, Any]) -> Tensor:
    """Prompts as the text encoder of a model sees them, (K, T, D)."""
    import transformers

    read = {name: value for name, value in options.items() if name == "revision"}
    tokenizer = transformers.CLIPTokenizer.from_pretrained(place, subfolder="tokenizer", **read)
    encoder = transformers.CLIPTextModel.from_pretrained(
        place, subfolder="text_encoder", use_safetensors=True, **read
    )
    tokens = tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt",
        max_length=tokenizer.model_max_length,
    )  # fmt: skip
    found: Tensor = encoder.eval()(tokens.input_ids)[0]
    return found


def new_classes(network: Any, classes: int, rng: torch.Generator) -> None:  # noqa: ANN401
    """Give a DiT an embedding for each of other classes, and keep that of no class.

    They start at the mean of those that it knows, and a little noise apart.
    """
    for block in network.transformer_blocks:
        old = block.norm1.emb.class_embedder.embedding_table
        known, none = old.weight[:-1], old.weight[-1:]
        noise = torch.randn(classes, known.shape[1], generator=rng).to(known)
        fresh = known.mean(dim=0) + 0.1 * known.std() * noise
        table = nn.Embedding(classes + 1, known.shape[1], dtype=known.dtype, device=known.device)
        with torch.no_grad():
            table.weight.copy_(torch.cat([fresh, none]))
        block.norm1.emb.class_embedder.embedding_table = table
        block.norm1.emb.class_embedder.num_classes = classes


def tune_little(module: nn.Module) -> None:
    """Let biases, norms of features and embeddings of classes be trained, and nothing else.

    Source: DiffFit (arXiv:2304.06648), without its factors.
    """
    for name, weight in module.named_parameters():
        weight.requires_grad_(name.endswith("bias") or "class_embedder" in name)


def folder_of(model: str) -> Path | None:
    """The folder of this machine that a model's name stands for, if there is one."""
    place = Path(model).expanduser()
    return place if place.is_dir() else None
