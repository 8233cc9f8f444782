"""Teachers as the relabel stage asks them: one answer of one or several networks.

`rescaled` follows G-VBSM (arXiv:2311.17950), which gives the logits of every teacher the mean of
the teachers' lengths before they are averaged, with one difference. G-VBSM takes one length per
teacher and batch, the norm of all of the batch's logits together; here every view has its own, so
that a label does not depend on which views were labeled beside it. Where all views of a teacher are
equally long both are the same; else G-VBSM counts a teacher for more in views of which its logits
are longer, and here all teachers count alike in every view.

Shape suffixes: B images, C channels, H W pixels, K classes, D features, X either, M networks.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distill_datasets.errors import RecipeError
from distill_datasets.models.architecture import Architecture, last_linear
from distill_datasets.models.weights import built, frozen
from distill_datasets.soft_labels.codes import Classifier
from distill_datasets.types import Shape
from distill_datasets.views.relabel import Relabel

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Voters:
    """The networks of a squeeze stage with the settings of `relabel`.

    They are copies: BatchNorm in batch mode neither reads nor moves the running statistics of the
    networks that were given. Threads may ask side by side.
    """

    classifier: Classifier | None = None
    """Of the one teacher whose features are stored; None where logits are."""

    def __init__(
        self, modules: Sequence[nn.Module], settings: Relabel, shape: Shape, device: torch.device
    ) -> None:
        """Take the networks that have a weight.

        Raises:
            RecipeError: the settings do not fit the shape or the number of networks; or batch
                statistics of one without BatchNorm, or features of one that does not end in a
                linear layer.
        """
        settings.check(shape, len(modules))
        weights = settings.weights or [1.0] * len(modules)
        used = [(module, weight) for module, weight in zip(modules, weights, strict=True) if weight]
        total = sum(weight for _, weight in used)
        self._weights = [weight / total for _, weight in used]
        self._modules = [copy.deepcopy(module).to(device).eval() for module, _ in used]
        self._rescaled = settings.teachers == "rescaled"
        if settings.store == "features":
            self.classifier = _split(self._modules[0], shape, device)
        if settings.batch_norm == "batch":
            for module in self._modules:
                _use_batch_statistics(module)

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, group_B: Tensor) -> Tensor:
        """Logits (B, K), or features (B, D) where there is a `classifier`.

        Each row depends on its own view alone, and with batch statistics on its group.

        Args:
            images_BCHW: in the student's input space, on the device.
            group_B: images of one group stand together and share BatchNorm statistics.
        """
        _, sizes = torch.unique_consecutive(group_B, return_counts=True)
        answers = [
            torch.cat([module(group) for group in torch.split(images_BCHW, sizes.tolist())])
            for module in self._modules
        ]
        if self._rescaled:
            # one length per view, where G-VBSM has one per batch: see above
            lengths = [answer_BK.norm(dim=1, keepdim=True) for answer_BK in answers]
            mean_B1 = torch.stack(lengths).mean(dim=0)
            answers = [
                answer_BK * (mean_B1 / length_B1)
                for answer_BK, length_B1 in zip(answers, lengths, strict=True)
            ]
        if len(answers) == 1:
            return answers[0]
        mean_BK = torch.zeros_like(answers[0])
        for weight, answer_BK in zip(self._weights, answers, strict=True):
            mean_BK += weight * answer_BK
        return mean_BK


def check_voters(settings: Relabel, architectures: Sequence[Architecture], shape: Shape) -> None:
    """Refuse settings that the networks of a squeeze stage cannot follow, before it trains them.

    Raises:
        RecipeError: as `Voters` says.
    """
    settings.check(shape, len(architectures))
    if settings.store == "features" or settings.batch_norm == "batch":
        untrained = [frozen(built(architecture, shape)) for architecture in architectures]
        Voters(untrained, settings, shape, torch.device("cpu"))


def _use_batch_statistics(module: nn.Module) -> None:
    norms = [layer for layer in module.modules() if isinstance(layer, NORMS)]
    if not norms:
        raise RecipeError(
            "relabel.batch_norm: batch needs teachers with BatchNorm, got one without; set "
            "batch_norm: eval or squeeze.network.norm: batch"
        )
    for layer in norms:
        layer.train()
        layer.track_running_stats = False


@torch.no_grad()
def _split(module: nn.Module, shape: Shape, device: torch.device) -> Classifier:
    """Take the last linear layer off a network, which then answers with its input."""
    found = last_linear(module)
    refusal = RecipeError(
        "relabel.store: features needs a teacher that ends in a linear layer and gives all of its "
        "input, which this one does not; set store: logits"
    )
    if found is None or not found[0]:
        raise refusal
    name, last = found
    # any image tells whether the layer is the end, and that the rest is linear in no other way
    rng = torch.Generator().manual_seed(0)
    probe_BCHW = torch.randn(2, shape.c, shape.h, shape.w, generator=rng).to(device)
    logits_BK = module(probe_BCHW)
    module.set_submodule(name, nn.Identity())
    bias_K = last.weight.new_zeros(len(last.weight)) if last.bias is None else last.bias
    classifier = Classifier(last.weight.detach().float().cpu(), bias_K.detach().float().cpu())
    features_BD = module(probe_BCHW)
    if features_BD.shape != (2, last.in_features):
        raise refusal
    if not torch.allclose(classifier(features_BD.float()), logits_BK.float(), rtol=1e-3, atol=1e-3):
        raise refusal
    return classifier
