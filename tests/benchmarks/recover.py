"""One step of recovering images against a plain eager loop written from the papers' formulas.

The plain loop is what the authors' programs do: a hook per BatchNorm layer that reads the mean,
copies the channels to the front and reads the variance; random resized crop, flip and roll; Adam.
Both move images of equal size with the same network.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
import torchvision.transforms.v2 as tv
from torch import Tensor, nn

from distill_datasets.data.normalization import InputSpace
from distill_datasets.distilled import Distilled
from distill_datasets.networks.network import TeacherNetwork, Teachers
from distill_datasets.objectives.recover import Recover
from distill_datasets.runtime.draws import LaneDraw
from tests.benchmarks.work import REFERENCE, Run, Size, Work, relative_error
from tests.support.tiny import images_of

CPU = torch.device("cpu")
CLASSES = 100
BN_WEIGHT, FIRST_BN_WEIGHT = 0.01, 10.0
SPACE = InputSpace(torch.full((3,), 0.5), torch.full((3,), 0.25))
WAYS: dict[str, dict[str, object]] = {
    "float32": {},
    "compiled": {"compile": True},
    "bf16_compiled": {"compile": True, "precision": "bfloat16"},
}


def teacher(side: int, device: torch.device) -> nn.Module:
    """ResNet-18 with some running statistics, and with the small stem below 128 px."""
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=CLASSES)
    if side < 128:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 1.5)
    return net.eval().requires_grad_(False).to(device)


def plain_loss(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy and the distance of BatchNorm statistics, by hooks."""
    kept: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None and layer.running_var is not None
        seen = inputs[0]
        mean = seen.mean([0, 2, 3])
        var = seen.permute(1, 0, 2, 3).contiguous().view(seen.shape[1], -1).var(1, unbiased=False)
        off = torch.norm(layer.running_var - var, 2) + torch.norm(layer.running_mean - mean, 2)
        kept.append(off)

    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(hook)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        kept.clear()
        entropy = F.cross_entropy(net(images), labels)
        return entropy + BN_WEIGHT * (FIRST_BN_WEIGHT * kept[0] + torch.stack(kept[1:]).sum())

    return loss


def plain(images: int, side: int, device: torch.device) -> Run:
    """One step of the authors' loop."""
    loss_of = plain_loss(teacher(side, device))
    pixels = torch.randn(images, 3, side, side, device=device, requires_grad=True)
    labels = torch.arange(images, device=device) % CLASSES
    rule = torch.optim.Adam([pixels], 0.25, (0.5, 0.9))
    crop, flip = tv.RandomResizedCrop(side, antialias=False), tv.RandomHorizontalFlip()

    def step() -> None:
        loss = loss_of(flip(crop(pixels)).roll((1, 2), (2, 3)), labels)
        rule.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        rule.step()
        with torch.no_grad():
            pixels.clamp_(-2, 2)

    return step


def problem(images: int, side: int, device: torch.device) -> tuple[Distilled, Teachers]:
    """Images of as many classes as fit, and their teacher."""
    classes_B = torch.arange(images) % CLASSES
    targets_BK = F.one_hot(classes_B, CLASSES).float()
    noise = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    distilled = images_of(noise, targets_BK, SPACE).to(device)
    return distilled, Teachers([TeacherNetwork(teacher(side, device))])


def ours(fields: dict[str, object], images: int, side: int, device: torch.device) -> Run:
    """One step of the objective, with the update."""
    settings = Recover.model_validate({"bn_weight": BN_WEIGHT, **fields})
    distilled, teachers = problem(images, side, device)
    (pixels,) = distilled.parameters.values()
    rule = torch.optim.Adam([pixels], 0.25, (0.5, 0.9))
    done = 0

    def step() -> None:
        nonlocal done
        draw = LaneDraw(0, done, 0, 1000)
        (pixels.grad,) = settings.estimate(distilled, teachers, None, draw).grads.values()
        rule.step()
        distilled.project()
        done += 1

    return step


def check() -> dict[str, float]:
    """The gradient in the pixels as they are, without a view."""
    images, side = 8, 16
    distilled, teachers = problem(images, side, CPU)
    (pixels,) = distilled.parameters.values()
    labels = torch.arange(images) % CLASSES
    loss_of = plain_loss(teacher(side, CPU))
    shown, _ = distilled(torch.arange(images))
    loss = loss_of(shown, labels)
    (expected,) = torch.autograd.grad(loss, pixels)
    settings = Recover(bn_weight=BN_WEIGHT, crop=None, flip=False, roll=0)
    found = settings.estimate(distilled, teachers, None, LaneDraw(0, 0, 0, 1))
    (got,) = found.grads.values()
    return {
        "loss": abs(found.loss - loss.item()) / abs(loss.item()),
        "gradient": relative_error(got, expected),
    }


def recover_work(name: str, sizes: dict[Size, tuple[int, int]]) -> Work:
    """The plain loop against the objective, eager and by torch's compiler."""

    def side_of(fields: dict[str, object]) -> Callable[[Size, torch.device], Run]:
        return lambda size, device: ours(fields, *sizes[size], device)

    return Work(
        name,
        {
            size: f"recover step: {images} images of {side} px, ResNet-18"
            for size, (images, side) in sizes.items()
        },
        {
            REFERENCE: lambda size, device: plain(*sizes[size], device),
            **{way: side_of(fields) for way, fields in WAYS.items()},
        },
        {"float32": 1.0, "compiled": 1.3, "bf16_compiled": 2.3},
        check,
        {"loss": 1e-5, "gradient": 1e-4},
    )


RECOVER_32 = recover_work("recover-32", {"tiny": (8, 16), "cpu": (100, 32), "paper": (100, 32)})
RECOVER_224 = recover_work("recover-224", {"tiny": (8, 16), "cpu": (10, 224), "paper": (100, 224)})
