"""The authors' own programs: what they compute in an outer step, called from where they lie.

A checkout is a folder that the user has cloned; nothing of it is in this repository. Drivers import
its networks, augmentation and, where there is one, its outer step, and feed them the pixels of the
library's side. Without a card, `.cuda()` of these programs does nothing.

Shape suffixes: B images, C channels, H W pixels, N distilled examples, P all weights of a network.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.benchmarks.outer_steps import (
    DISTRIBUTION_SETTINGS,
    DSA,
    GRADIENT_SETTINGS,
    STEPS_OF_10,
    STEPS_OF_100,
    WINDOWS_32,
    WINDOWS_96,
    Problem,
    Window,
    per_class,
)
from tests.benchmarks.work import Run, Size

OFFICIAL = "official"
STRATEGY = "_".join(DSA.operations)
"""Of DSA, as its program spells it."""
Driver = Callable[[Size, torch.device], Run]


@dataclass(frozen=True)
class Checkout:
    """An authors' repository: how it is known, and what runs of it."""

    name: str
    files: tuple[str, ...]
    drivers: Mapping[str, Driver]
    """By the name of the work."""


def convnet(networks: ModuleType, width: int) -> nn.Module:
    """Their ConvNet-3 for CIFAR-10."""
    made: nn.Module = networks.ConvNet(
        channel=3, num_classes=10, net_width=width, net_depth=3, net_act="relu",
        net_norm="instancenorm", net_pooling="avgpooling", im_size=(32, 32),
    )  # fmt: skip
    return made


def own_pixels(problem: Problem) -> tuple[Tensor, Tensor]:
    """The distilled images where a network sees them, as these programs hold them, and labels."""
    _, _, shown, _ = problem.plain()
    targets_NK = problem.distilled.targets(torch.arange(problem.distilled.count))
    return shown().detach().requires_grad_(), targets_NK


def classes_of(
    problem: Problem, images_NCHW: Tensor, real_batch: int
) -> Callable[[], Iterator[tuple[int, Tensor, Tensor]]]:
    """What goes through the classes: each, random real images of it, and the distilled ones."""
    _, _, _, floats = problem.plain()
    rows = list(problem.real.rows_of_class)
    ours = images_NCHW.view(len(rows), -1, *images_NCHW.shape[1:])

    def drawn() -> Iterator[tuple[int, Tensor, Tensor]]:
        for label, own_N in enumerate(rows):
            chosen_B = own_N[torch.randperm(len(own_N))[:real_batch]]
            yield label, floats.images_BCHW[chosen_B], ours[label]

    return drawn


def distribution(size: Size, device: torch.device) -> Run:
    """DM: `networks.ConvNet.embed` and `utils.DiffAugment`, class after class."""
    networks, utils = imported("networks"), imported("utils")
    width, real_batch = DISTRIBUTION_SETTINGS[size]
    problem = per_class(width, 2 * real_batch, device)
    images_NCHW, _ = own_pixels(problem)
    classes, moved = classes_of(problem, images_NCHW, real_batch), utils.ParamDiffAug()

    def run() -> Tensor:
        network = convnet(networks, width).to(device).requires_grad_(False)
        loss = torch.zeros((), device=device)
        for label, theirs, ours in classes():
            theirs_D, ours_D = (
                network.embed(utils.DiffAugment(each, STRATEGY, seed=label, param=moved)).mean(
                    dim=0
                )  # type: ignore[operator]
                for each in (theirs, ours)
            )
            loss = loss + (theirs_D.detach() - ours_D).square().sum()
        return torch.autograd.grad(loss, images_NCHW)[0]

    return run


def gradient(size: Size, device: torch.device) -> Run:
    """DSA: `utils.match_loss` of their networks' gradients, class after class."""
    networks, utils = imported("networks"), imported("utils")
    width, real_batch = GRADIENT_SETTINGS[size]
    problem = per_class(width, 2 * real_batch, device)
    images_NCHW, _ = own_pixels(problem)
    classes, moved = classes_of(problem, images_NCHW, real_batch), utils.ParamDiffAug()

    class Asked:
        """What `match_loss` reads of the options."""

        dis_metric = "ours"

        def __init__(self) -> None:
            self.device = device

    def run() -> Tensor:
        network = convnet(networks, width).to(device)
        weights = list(network.parameters())
        loss = torch.zeros((), device=device)
        for label, theirs, ours in classes():
            found = []
            for images, graph in ((theirs, False), (ours, True)):
                images = utils.DiffAugment(images, STRATEGY, seed=label, param=moved)
                labels = torch.full((len(images),), label, device=device)
                entropy = F.cross_entropy(network(images), labels)
                found.append(torch.autograd.grad(entropy, weights, create_graph=graph))
            loss = loss + utils.match_loss(found[1], found[0], Asked())
        return torch.autograd.grad(loss, images_NCHW)[0]

    return run


def trajectory(ipc: int, steps_of: Mapping[Size, int]) -> Driver:
    """MTT: `reparam_module.ReparamModule` of their network, with a learned step size."""

    def prepare(size: Size, device: torch.device) -> Run:
        networks, utils = imported("networks"), imported("utils")
        module = imported("reparam_module").ReparamModule
        problem = per_class(8 if size == "tiny" else 128, 2 * ipc, device, ipc)
        images_NCHW, targets_NK = own_pixels(problem)
        moved = utils.ParamDiffAug()
        step_size = torch.tensor(0.01, device=device, requires_grad=True)

        def run() -> Tensor:
            own = convnet(networks, problem.width).to(device)
            start_P = nn.utils.parameters_to_vector(own.parameters()).detach()
            target_P = start_P + 0.01 * torch.randn_like(start_P)
            student = module(own)
            weights_P = start_P.clone().requires_grad_()
            for _ in range(steps_of[size]):
                order_N = torch.randperm(len(images_NCHW))
                images = utils.DiffAugment(images_NCHW[order_N], STRATEGY, param=moved)
                entropy = F.cross_entropy(
                    student(images, flat_param=weights_P), targets_NK[order_N]
                )
                (grad_P,) = torch.autograd.grad(entropy, weights_P, create_graph=True)
                weights_P = weights_P - step_size * grad_P
            loss = (weights_P - target_P).square().sum() / (start_P - target_P).square().sum()
            return torch.autograd.grad(loss, [images_NCHW, step_size])[0]

        return run

    return prepare


def poster(windows: Mapping[Size, Window]) -> Driver:
    """PoDD: their `PoDD` module, whose forward pass is the whole outer step but the loss."""

    def prepare(size: Size, device: torch.device) -> Run:
        podd, data, crops, networks = (
            imported(f"src.{name}") for name in ("PoDD", "data_utils", "PoDD_utils", "convnet")
        )
        window = windows[size]
        podd.get_arch = lambda *asked: convnet(networks, window.width)  # theirs has one width
        problem = window.problem(device)
        _, trained, _, real = problem.plain()
        poster_CHW = trained.detach()[None].clone().requires_grad_()
        grid = problem.distilled.count
        rows = problem.distilled.geometry()["corners_yx"]  # type: ignore[attr-defined]
        high = len({y for y, _ in rows})

        def cut(pixels: Tensor, index_B: Tensor) -> Tensor:
            found: Tensor = crops.get_crops_from_poster(
                pixels, 32, 32, grid // high, high, indexes_subset=index_B
            )
            return found

        def moving(name: str) -> object:
            return data.ImageIntervention(name, "flip_rotate", phase="test", not_single=False)

        model = podd.PoDD(
            poster_CHW, problem.distilled.targets(torch.arange(grid)), cut, "convnet",
            window.window, 0.001, 1, total_patch_num=grid, distill_batch_size=window.batch,
            num_classes=10, channel=3, im_size=(32, 32), inner_optim="Adam",
            syn_intervention=moving("syn_aug"), real_intervention=moving("real_aug"),
        )  # fmt: skip
        model.dd_type, model.curriculum = "curriculum", window.warm_up

        def run() -> Tensor:
            index_B = torch.randperm(len(real.images_BCHW))[: window.real_batch]
            logits_BK, _ = model(real.images_BCHW[index_B])
            loss = F.cross_entropy(logits_BK, real.targets_BK[index_B])
            return torch.autograd.grad(loss, poster_CHW)[0]

        return run

    return prepare


CHECKOUTS = (
    Checkout(
        "VICO-UoE/DatasetCondensation",
        ("main_DM.py", "networks.py", "utils.py"),
        {"distribution": distribution, "gradient": gradient},
    ),
    Checkout(
        "GeorgeCazenavette/mtt-distillation",
        ("reparam_module.py", "networks.py", "utils.py"),
        {
            "trajectory-10": trajectory(1, STEPS_OF_10),
            "trajectory-100": trajectory(10, STEPS_OF_100),
        },
    ),
    Checkout(
        "AsafShul/PoDD",
        ("src/PoDD.py", "src/PoDD_utils.py", "src/data_utils.py"),
        {"unrolled-96": poster(WINDOWS_96), "unrolled-32": poster(WINDOWS_32)},
    ),
)
LAYOUTS = "; ".join(f"{each.name} ({', '.join(each.files)})" for each in CHECKOUTS)


def checkout_in(folder: Path) -> Checkout:
    """Which repository a folder is a checkout of.

    Raises:
        SystemExit: none that is known.
    """
    for each in CHECKOUTS:
        if all((folder / name).is_file() for name in each.files):
            return each
    raise SystemExit(
        f"--official: got {folder}, expected the checkout of one of: {LAYOUTS}; clone it and give "
        "its folder"
    )


def imported(name: str) -> ModuleType:
    """A module of the checkout, which is first on the path.

    Raises:
        SystemExit: it imports something that is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"--official: {name} of the checkout imports {error.name!r}, which is not installed; "
            f"install it into this environment"
        ) from error


def prepared(folder: Path, work: str, size: Size, device: torch.device) -> Run:
    """The authors' side of a work, in a process of its own."""
    sys.path.insert(0, str(folder))
    if device.type == "cpu":
        for kind in (nn.Module, Tensor):
            kind.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign, assignment]
    return checkout_in(folder).drivers[work](size, device)
