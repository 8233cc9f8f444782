"""A frozen backbone of a few weights, and toy images as it sees them.

Shape suffixes: N rows, D features.
"""

from pathlib import Path

import torch

from distill_datasets.data.features import Features, moments
from distill_datasets.data.real import RealData
from distill_datasets.files.artifacts import write_tensors
from distill_datasets.models.backbones import SqueezedBackbone
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.models.weights import built
from distill_datasets.runtime.draws import rng_for
from distill_datasets.types import Shape
from support.tiny import CPU, toy_real

SHAPE = Shape(3, 8, 8, 4)
NETWORK = ConvNet(depth=2, width=6)


def tiny_backbone(folder: Path, **settings: object) -> SqueezedBackbone:
    """A ConvNet with drawn weights in a file of this folder, 24 features."""
    path = folder / "tiny.safetensors"
    if not path.exists():
        module = built(NETWORK, SHAPE)
        initialize(module, rng_for(7, "backbone"))
        write_tensors(path, module.state_dict())
    given = {"size": 8, "mean": [0.5] * 3, "std": [0.25] * 3} | settings
    return SqueezedBackbone(network=NETWORK, weights=str(path), **given)  # type: ignore[arg-type]


@torch.no_grad()
def seen(real: RealData, backbone: SqueezedBackbone) -> RealData:
    """The same images with their features, as the features stage leaves them."""
    asked = backbone.load(CPU)
    train_ND, test_ND = (
        asked(split.images_NCHW.float() / 255) for split in (real.train, real.test)
    )
    known = moments(train_ND, real.train.labels_N, real.shape.k)
    real.features[backbone.key] = Features(train_ND, test_ND, known)
    return real


def probed(folder: Path, per_class: int = 8) -> tuple[RealData, SqueezedBackbone]:
    """Toy images of four classes, and the backbone that sees them."""
    backbone = tiny_backbone(folder)
    return seen(toy_real(SHAPE, per_class=per_class), backbone), backbone
