"""Images for a linear probe on many classes, as a program of some processes.

As a program: `python probe_scale.py FOLDER CLASSES IMAGES`; it prints the bytes of memory that
features and blocks took at most beyond what was there before, and the hash of the images.
"""

import gc
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import Normalization
from distill_datasets.data.real import RealData
from distill_datasets.files.artifacts import open_rows, sha256_tensors, write_rows, write_tensors
from distill_datasets.models.backbones import SqueezedBackbone
from distill_datasets.models.convnets import ConvNet
from distill_datasets.models.initialization import initialize
from distill_datasets.models.weights import built
from distill_datasets.networks.pretrained import Backbones
from distill_datasets.runtime.draws import rng_for
from distill_datasets.runtime.processes import Run, Runtime
from distill_datasets.stages.blocks import run_blocks
from distill_datasets.stages.distill import Distill
from distill_datasets.stages.features import run_features
from distill_datasets.stages.source import LoadedSource
from distill_datasets.types import Shape

SIDE = 16
NETWORK = ConvNet(depth=2, width=32)


def made_source(folder: Path, classes: int, images: int, main: bool) -> LoadedSource:
    """So many training images of all classes and a test image of each, mapped from files."""
    splits = []
    for name, each in (("train", images // classes), ("test", 1)):
        rng, path = rng_for(0, name), folder / f"{name}.npy"
        size = (classes * each, 3, SIDE, SIDE)
        if main and not path.exists():
            images_NCHW = torch.randint(0, 256, size, generator=rng, dtype=torch.uint8)
            write_rows(path, size, [images_NCHW])
        PartialState().wait_for_everyone()
        splits.append(Split(open_rows(path), torch.arange(classes).repeat_interleave(each)))
    names = [f"class {label}" for label in range(classes)]
    half = Normalization(torch.full((3,), 0.5), torch.full((3,), 0.25))
    real = RealData(splits[0], splits[1], names, half, Shape(3, SIDE, SIDE, classes))
    return LoadedSource(real, None, f"made {classes}")  # type: ignore[arg-type]


def weights(folder: Path) -> str:
    """The file of a backbone with drawn weights, 512 features."""
    path = folder / "backbone.safetensors"
    module = built(NETWORK, Shape(3, SIDE, SIDE, 2))
    initialize(module, rng_for(1, "backbone"))
    if not path.exists():
        write_tensors(path, module.state_dict())
    return str(path)


def peak() -> int:
    """The most memory that this process has held since `/proc/self/clear_refs` was written to."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def main() -> None:
    folder, classes, images = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    runtime = Runtime()
    source = made_source(folder, classes, images, runtime.is_main)
    if runtime.is_main:
        weights(folder)
    runtime.wait()
    backbone = SqueezedBackbone(
        network=NETWORK, weights=weights(folder), size=SIDE, mean=[0.5] * 3, std=[0.25] * 3
    )
    settings = Distill.model_validate(
        {
            "objective": {"name": "linear", "classes_at_once": 5},
            "canvas": {"name": "pyramid", "ipc": 1},
            "labels": "area",
            "networks": Backbones(backbones=[backbone]),
            "steps": 3,
            "clip": None,
            "previews": 0,
        }
    )
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = peak()
    run = Run(0, folder / "runs", runtime, shown=False)
    with runtime.reproducible():
        run_features([backbone], source, run)
        found = run_blocks(settings, source, run)
    if runtime.is_main:
        print(peak() - before, sha256_tensors([found.images_NCHW]))


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # as the end of a run does
