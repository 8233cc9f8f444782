"""The stage that trains networks on real data ahead of time: teachers, experts, starting points.

Every member is a unit of its own: a safetensors file with its weights after each epoch appears when
it is done, then a JSON file with its accuracy on the test images. A run that was killed skips the
members that it finds, and so does one that asks for more of them.

Shape suffixes: P all weights of a network, E epochs with the initialization, M members, B images,
K classes.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill_datasets.artifacts import (
    fingerprint,
    read_json,
    sha256_of,
    write_json,
    write_tensors,
)
from distill_datasets.errors import ArtifactError, DistillError
from distill_datasets.networks.sources import FlatNetwork, skeleton_of
from distill_datasets.progress import progress_bar
from distill_datasets.runtime import Runtime, draws
from distill_datasets.stages.source import LoadedSource
from distill_datasets.students import Squeeze, Whole, accuracy, steps_of, train_student
from distill_datasets.types import Shape, Squeezed

VERSION = 1
TEST_BATCH = 500
ASKED_AT_ONCE = 256


@dataclass(frozen=True)
class SqueezedFolder(Squeezed):
    """The trained members, read from their files when they are asked for."""

    folder: Path

    def weights(self, member: int, epoch: int) -> Tensor:
        """Weights (P,) of a member after `epoch` epochs, on the CPU; 0 is its initialization."""
        kept = range(self.epochs + 1) if self.keep == "every" else [0, self.epochs]
        if member not in range(self.members) or epoch not in kept:
            raise DistillError(
                f"squeeze: no weights of member {member} after epoch {epoch}; there are "
                f"{self.members} members of {self.epochs} epochs, and squeeze.keep is "
                f"{self.keep!r}"
            )
        path = _file(self.folder, member)
        try:
            # maps the file and reads one row of it; a handle of its own for every lane's thread
            with safe_open(path, framework="pt") as file:
                weights_P: Tensor = file.get_slice("weights_EP")[kept.index(epoch)]
                return weights_P.clone()
        except (FileNotFoundError, SafetensorError) as error:
            raise ArtifactError(
                f"{path}: cannot read the weights of member {member} ({error}); move the file away "
                "and run again, the member is then trained again"
            ) from error

    def accuracies(self) -> list[float]:
        """The share of test images that each member gets right after its last epoch."""
        return [_facts(self.folder, member)["accuracy"] for member in range(self.members)]

    @property
    def fingerprint(self) -> str:
        """Of the weights of every member, in order."""
        return fingerprint(
            [_facts(self.folder, member)["sha256"] for member in range(self.members)]
        )


class Members:
    """Every member after its last epoch, asked for its logits."""

    def __init__(self, squeezed: SqueezedFolder, shape: Shape) -> None:
        skeleton = skeleton_of(squeezed.architecture, shape)
        self._networks = [
            FlatNetwork(skeleton, squeezed.weights(member, squeezed.epochs))
            for member in range(squeezed.members)
        ]

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Logits (M, B, K)."""
        return torch.stack(
            [
                torch.cat(
                    [
                        network(network.weights_P, chunk)
                        for chunk in torch.split(images_BCHW.cpu(), ASKED_AT_ONCE)
                    ]
                )
                for network in self._networks
            ]
        )


def run_squeeze(
    settings: Squeeze,
    source: LoadedSource,
    *,
    seed: int,
    runs: Path,
    runtime: Runtime,
    quiet: bool,
) -> SqueezedFolder:
    """Train the members that no earlier run has finished.

    Args:
        settings: the `squeeze` section.
        source: what they are trained on.
        seed: the recipe's seed.
        runs: the folder of this recipe's stages.
        runtime: members are dealt to its processes and threads.
        quiet: no progress bar.

    Raises:
        DistillError: a loss is not finite, or an epoch changed no weight.

    The number of members is no part of the folder's name, so more of them later leave those that
    are there alone. It does decide how many intra-op threads a member gets where members are fewer
    than cores, and with that a member's last bits; the JSON file says how many there were.
    """
    deciding = settings.model_dump(mode="json", exclude={"source", "members"})
    identity = fingerprint([VERSION, "squeeze", deciding, source.fingerprint, seed])
    folder = runs / f"squeeze-{identity}"
    examples = Whole(source.real)
    steps = steps_of(settings.epochs, examples.count, settings.batch)
    per_epoch = steps // settings.epochs

    def train(member: int) -> None:
        path = _file(folder, member)
        if not (path.exists() and path.with_suffix(".json").exists()):
            rows = list[Tensor]()

            def snapshot(done: int, module: nn.Module) -> None:
                kept = done in (0, steps) if settings.keep == "last" else done % per_epoch == 0
                if kept:
                    weights_P = nn.utils.parameters_to_vector(module.parameters())
                    rows.append(weights_P.detach().cpu().clone())

            draw = draws(seed, "squeeze", member)
            device = runtime.device
            module = train_student(
                settings, steps, examples, source.real.shape, draw, device, snapshot
            )
            for epoch, (before_P, after_P) in enumerate(itertools.pairwise(rows)):
                if torch.equal(before_P, after_P):
                    raise DistillError(
                        f"squeeze: epoch {epoch + 1} of member {member} changed no weight; raise "
                        "squeeze.optimizer.lr"
                    )
            write_tensors(path, {"weights_EP": torch.stack(rows)})
            right = accuracy(module, source.real.test_batches(TEST_BATCH))
            facts = {
                "accuracy": right,
                "sha256": sha256_of(path),
                "threads": torch.get_num_threads(),
            }
            write_json(path.with_suffix(".json"), facts)
        bar.advance(1)

    mine = runtime.mine(settings.members)
    with (
        progress_bar("squeeze", len(mine), shown=runtime.is_main and not quiet) as bar,
        runtime.pool(settings.members) as run_units,
    ):
        run_units(train, mine)
    runtime.wait()
    return SqueezedFolder(
        settings.network, settings.members, settings.epochs, settings.keep, folder
    )


def _file(folder: Path, member: int) -> Path:
    return folder / f"member-{member:04d}.safetensors"


def _facts(folder: Path, member: int) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(_file(folder, member).with_suffix(".json"))
    return facts
