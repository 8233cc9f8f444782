"""Time one step of recover against a plain eager loop written from the paper's formulas.

Run by hand, for example on one core: `taskset -c 1 python tests/benchmarks/recover.py convnet`.
The plain loop is what the authors' programs do: a hook per BatchNorm layer that reads the mean,
copies the channels to the front and reads the variance; random resized crop, flip and roll; Adam.
Both move the same images with the same networks, one after the other, in the same process.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
import torchvision
import torchvision.transforms.v2 as tv
from torch import nn

from distill_datasets.canvases.pixels import PixelImages
from distill_datasets.labels.table import FixedLabels
from distill_datasets.objectives.recover import Recover
from distill_datasets.runtime import LaneDraws, keep_freed_memory
from distill_datasets.types import Distilled, TeacherNetwork, Teachers


def convnet(side: int) -> nn.Module:
    """ConvNet-3 of width 128 with BatchNorm."""
    layers: list[nn.Module] = []
    for channels in (3, 128, 128):
        layers += [nn.Conv2d(channels, 128, 3, padding=1, bias=False), nn.BatchNorm2d(128)]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * (side // 8) ** 2, 100))


def resnet18(side: int) -> nn.Module:
    """ResNet-18, with the small stem below 128 px."""
    net = torchvision.models.resnet18(num_classes=100)
    if side < 128:
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def plain(net: nn.Module, images: int, side: int, device: torch.device) -> Callable[[], None]:
    """One step of the authors' loop."""
    kept: list[torch.Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        seen = inputs[0]
        mean = seen.mean([0, 2, 3])
        var = seen.permute(1, 0, 2, 3).contiguous().view(seen.shape[1], -1).var(1, unbiased=False)
        off = torch.norm(layer.running_var - var, 2) + torch.norm(layer.running_mean - mean, 2)
        kept.append(off)

    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(hook)
    pixels = torch.randn(images, 3, side, side, device=device, requires_grad=True)
    labels = torch.arange(images, device=device) % 100
    rule = torch.optim.Adam([pixels], 0.25, (0.5, 0.9))
    crop, flip = tv.RandomResizedCrop(side, antialias=False), tv.RandomHorizontalFlip()

    def step() -> None:
        kept.clear()
        seen = flip(crop(pixels)).roll((1, 2), (2, 3))
        loss = F.cross_entropy(net(seen), labels)
        loss = loss + 0.01 * (10 * kept[0] + sum(kept[1:], torch.zeros((), device=device)))
        rule.zero_grad()
        loss.backward()
        rule.step()
        with torch.no_grad():
            pixels.clamp_(-2, 2)
        loss.item()

    return step


def ours(
    settings: Recover, net: nn.Module, images: int, side: int, device: torch.device
) -> Callable[[], None]:
    """One step of the objective, with the update."""
    classes_B = torch.arange(images) % 100
    targets_BK = F.one_hot(classes_B, 100).float()
    distilled = Distilled(
        PixelImages(torch.rand(images, 3, side, side), classes_B, "clip"),
        FixedLabels(targets_BK, targets_BK),
        torch.full((3,), 0.5),
        torch.full((3,), 0.25),
    ).to(device)
    teachers = Teachers([TeacherNetwork(net)])
    (pixels,) = distilled.parameters()
    rule = torch.optim.Adam([pixels], 0.25, (0.5, 0.9))
    done = 0

    def step() -> None:
        nonlocal done
        (pixels.grad,) = settings.pull(
            distilled, teachers, LaneDraws(0, done, 0, 1000)
        ).grads.values()
        rule.step()
        distilled.canvas.project()
        done += 1

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=["convnet", "resnet18"])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    torch.manual_seed(0)
    accelerated = torch.accelerator.is_available()
    device = torch.accelerator.current_accelerator() if accelerated else torch.device("cpu")
    assert device is not None
    make = {"convnet": convnet, "resnet18": resnet18}[given.network]
    with torch.no_grad():
        net = make(given.side).eval().requires_grad_(False).to(device)
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)
                layer.running_var.uniform_(0.5, 1.5)
    lower = {"precision": "bfloat16"}
    rows: dict[str, Recover | None] = {
        "plain eager loop": None,
        "eager": Recover(),
        "eager bfloat16": Recover(**lower),
        "eager bfloat16 channels_last": Recover(**lower, channels_last=True),
        "compiled": Recover(compile=True),
        "compiled bfloat16": Recover(compile=True, **lower),
        "compiled bfloat16 channels_last": Recover(compile=True, channels_last=True, **lower),
    }
    steps: dict[str, Callable[[], None]] = {}
    for name, settings in rows.items():
        if given.only and name not in given.only:
            continue
        sized = (given.images, given.side, device)
        own = make(given.side).eval().requires_grad_(False).to(device)
        own.load_state_dict(net.state_dict())
        steps[name] = plain(own, *sized) if settings is None else ours(settings, own, *sized)
        began = time.perf_counter()
        steps[name]()
        steps[name]()
        print(f"{name}: first two steps {time.perf_counter() - began:.1f} s", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(given.steps):  # in turn, so that what else the machine does slows all alike
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.median(seconds[next(iter(steps))])
    for name, each in seconds.items():
        median = statistics.median(each)
        print(
            f"{given.network} {given.images} x {given.side} px, {name}: {median:.4f} s per step "
            f"(least {min(each):.4f}), {given.images / median:.0f} image-iterations/s, "
            f"{base / median:.2f} x"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if accelerated:
        peak = torch.accelerator.max_memory_allocated() / 2**20
    print(f"peak {peak:.0f} MiB; --only NAME measures that of one way")


if __name__ == "__main__":
    main()
