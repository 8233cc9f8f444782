"""The lines of a card that train a network on what is published, with nothing of this library."""

from typing import Any

from distill_datasets.export.card_views import training_on_views
from distill_datasets.export.content import STARTS, Content

_SMALL = """\
net = torch.nn.Sequential(
    torch.nn.Conv2d({channels}, 64, 3, padding=1), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(64 * 16, {classes}),
)
"""

_TRAIN = """\
import torch
from datasets import load_dataset

rows = load_dataset("{repo}", "default", split="train").with_format("torch")[:]
mean, std = torch.tensor({mean}).view(-1, 1, 1), torch.tensor({std}).view(-1, 1, 1)
images = (rows["image"].float() / 255 - mean) / std  # test images: the same normalization
{network}optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
for _ in range(100):
    loss = torch.nn.functional.cross_entropy(net(images), rows["soft_label"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


_FOLLOW = """\
{standard}import torch
from datasets import load_dataset
{imports}
rows = load_dataset("{repo}", "default", split="train").with_format("torch")[:]
how = load_dataset("{repo}", "recipe", split="train")[0]
mean, std = (torch.tensor(how[name]).view(-1, 1, 1) for name in ("mean", "std"))
images = (rows["image"].float() / 255 - mean) / std  # test images: the same normalization
{network}{start}{order}{step_sizes}optimizer = torch.optim.{optimizer}
for step in range({steps}):
    batch = {batch}
{rate}    loss = torch.nn.functional.cross_entropy(net(images[batch]), rows["soft_label"][batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""

_XAVIER = """\
for layer in net:
    if hasattr(layer, "weight"):
        torch.nn.init.xavier_normal_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
"""

XAVIER = ("lenet",)
"""Networks whose fresh weights are not torch's own."""

_RATE = """\
    optimizer.param_groups[0]["lr"] = step_sizes[step % len(step_sizes)]{factor}
"""

_TENTH = " * (0.1 if 2 * step >= {steps} else 1)"

_START_IMPORTS = """\
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
"""

_START = """\
path = "{repo}/{starts}"  # of a folder, or of the repository
if not os.path.exists(path):
    path = hf_hub_download("{repo}", "{starts}", repo_type="dataset")
start = load_file(path)["weights_SP"][0]  # of the first student
torch.nn.utils.vector_to_parameters(start, net.parameters())
"""


def training(content: Content, repo: str) -> str:
    """Python that trains a network: as the students that were measured where they follow steps.

    Args:
        content: what is published.
        repo: what `load_dataset` is given.
    """
    follows = content.student.get("follows", {})
    network = _SMALL.format(channels=content.images_NCHW.shape[1], classes=len(content.class_names))
    if content.relabel is not None:
        rule = content.student.get("optimizer", {"name": "sgd", "lr": 0.01, "momentum": 0.9})
        optimizer = "" if rule["name"] == "adamw" else _optimizer(rule)
        return training_on_views(content, repo, network, optimizer)
    if not follows:
        mean, std = _floats(content.mean), _floats(content.std)
        return _TRAIN.format(repo=repo, mean=mean, std=std, network=network)
    if content.layers:
        layers = "".join(f"    torch.nn.{layer},\n" for layer in content.layers)
        network = f"net = torch.nn.Sequential(\n{layers})\n"
        if content.student["network"]["name"] in XAVIER and "start" not in follows:
            network += _XAVIER
    own = "start" in follows and bool(content.layers)
    in_order, paced = "order" in follows, "step_sizes" in follows
    return _FOLLOW.format(
        repo=repo,
        standard=("import json\n" if in_order else "") + ("import os\n" if own else ""),
        imports=_START_IMPORTS if own else "",
        network=network,
        start=_START.format(repo=repo, starts=STARTS) if own else "",
        optimizer=_optimizer(content.student["optimizer"]),
        steps=_steps(content),
        order='order = json.loads(how["order_json"])\n' if in_order else "",
        step_sizes='step_sizes = how["step_sizes"]\n' if paced else "",
        batch=_batch(content, in_order),
        rate=_RATE.format(factor=_tenth(content)) if paced else "",
    )


def _steps(content: Content) -> int:
    student = content.student
    steps: int = student["steps"] or student["epochs"] * max(
        1, len(content.images_NCHW) // student["batch"]
    )
    return steps


def _tenth(content: Content) -> str:
    """What a step size is multiplied by, where it falls half-way."""
    falls = content.student.get("schedule") == "published_step"
    return _TENTH.format(steps=_steps(content)) if falls else ""


def _batch(content: Content, in_order: bool) -> str:
    """The rows of a step."""
    size: int = content.student["batch"]
    if in_order:
        return "order[step % len(order)]"
    if size >= len(content.images_NCHW):
        return "torch.arange(len(images))"
    return f"torch.randperm(len(images))[:{size}]"


def _optimizer(rule: dict[str, Any]) -> str:
    """The constructor of torch's optimizer that follows the same rule."""
    if rule["name"] == "adam":
        return f"Adam(net.parameters(), {rule['lr']}, ({rule['beta1']}, {rule['beta2']}))"
    momentum, decay = rule.get("momentum", 0.0), rule.get("weight_decay", 0.0)
    return f"SGD(net.parameters(), {rule['lr']}, momentum={momentum}, weight_decay={decay})"


def _floats(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.9g}" for value in values) + "]"
