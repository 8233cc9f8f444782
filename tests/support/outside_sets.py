"""Sets in the exact layouts of other people's code, of the digits that ship with the package.

Shape suffixes: N images, K classes, C channels, H W pixels.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill_datasets.data.source import Source, open_source
from distill_datasets.runtime.draws import draws

DIGITS = "embedded:uci-digits"
MEAN, STD = 0.3, 0.35
"""Of a normalization that no file tells."""


def digits(per_class: int = 2) -> tuple[Tensor, Tensor]:
    """Real digits, uint8 (N, 1, 8, 8) class by class, and their classes (N,)."""
    train = open_source(Source(dataset=DIGITS)).read(draws(0)).train
    rows = [(train.labels_N == label).nonzero().flatten()[:per_class] for label in range(10)]
    index_N = torch.cat(rows)
    return train.images_NCHW[index_N], train.labels_N[index_N]


def normalized(images_NCHW: Tensor) -> Tensor:
    """Images as the students of these sets see them."""
    return (images_NCHW.float() / 255 - MEAN) / STD


def save_dm(folder: Path, experiments: int = 2) -> Path:
    """As main_DM.py of DatasetCondensation saves: images and labels of every experiment."""
    images_NCHW, labels_N = digits()
    data = [[normalized(images_NCHW) + 0.1 * turn, labels_N] for turn in range(experiments)]
    # what an evaluation computed with numpy
    accuracies = {"ConvNet": [np.float64(0.5), np.float64(0.7)]}
    path = folder / "res_DM_digits_ConvNet_2ipc.pt"
    torch.save({"data": data, "accs_all_exps": accuracies}, path)
    return path


def save_mtt(folder: Path) -> Path:
    """As distill.py of mtt-distillation saves its best iteration."""
    images_NCHW, labels_N = digits()
    torch.save(normalized(images_NCHW), folder / "images_best.pt")
    torch.save(labels_N, folder / "labels_best.pt")
    return folder


def save_datm(folder: Path) -> Path:
    """As DATM saves: labels are logits, and the step size is learned."""
    images_NCHW, labels_N = digits()
    logits_NK = 5 * torch.nn.functional.one_hot(labels_N, 10).float() - 1
    torch.save(normalized(images_NCHW).requires_grad_(), folder / "images_best.pt")
    torch.save(logits_NK.requires_grad_(), folder / "labels_best.pt")
    torch.save(torch.tensor(0.02), folder / "lr_best.pt")
    return folder


def save_rfad(folder: Path) -> Path:
    """As distillation.py of RFAD saves: targets of a regression, and the scale of its logits."""
    images_NCHW, labels_N = digits()
    targets_NK = torch.nn.functional.one_hot(labels_N, 10).float() - 1 / 10
    path = folder / "best.npz"
    np.savez(
        path,
        images=normalized(images_NCHW).numpy(),
        labels=targets_NK.numpy(),
        valid_loss=0.6,
        k=np.float32(3.5),
        jit=0.005,
        best_iter=1200,
    )
    return path


def save_folders(folder: Path, name: str = "new{:03d}/class{:03d}_id{:03d}.jpg") -> Path:
    """As SRe2L and its descendants save: a JPEG of quality 75 for each image, by class."""
    images_NCHW, labels_N = digits()
    seen = dict[int, int]()
    for image_CHW, label in zip(images_NCHW, labels_N.tolist(), strict=True):
        number = seen[label] = seen.get(label, -1) + 1
        path = folder / name.format(label, label, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image_CHW[0].numpy()).save(path)
    return folder


def save_fkd(folder: Path, images: int = 20, epochs: int = 2, batch: int = 8) -> Path:
    """As generate_soft_label.py of SRe2L saves: a list of six for every batch of every epoch."""
    labels_N = digits()[1]
    loader = torch.utils.data.DataLoader(
        range(images),  # type: ignore[arg-type]
        batch_size=batch,
        sampler=torch.utils.data.RandomSampler(
            range(images), generator=torch.Generator().manual_seed(42)
        ),
    )
    for epoch in range(epochs):
        for number, index_B in enumerate(loader):
            count = len(index_B)
            mixed_B = torch.randperm(count)
            # the teacher is sure of the class of the view itself
            logits_BK = 9 * torch.nn.functional.one_hot(labels_N[index_B], 10).half()
            crop_B4 = torch.tensor([[0.0, 0.25, 0.5, 0.75]]).repeat(count, 1)
            path = folder / f"epoch_{epoch}" / f"batch_{number}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            box = [np.int64(1), np.int64(2), np.int64(3), np.int64(4)]
            torch.save(
                [crop_B4, torch.rand(count) < 0.5, mixed_B, np.float64(0.9), box, logits_BK], path
            )
    return folder
