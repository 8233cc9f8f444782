"""Teachers as the relabel stage asks them: one output of one or several networks.

`rescaled` follows G-VBSM (arXiv:2311.17950), which gives the logits of every teacher the mean of
the teachers' lengths before they are averaged, with one difference. G-VBSM takes one length per
teacher and batch, the norm of all of the batch's logits together; here every view has its own, so
that a label does not depend on which views were labeled beside it. Where all views of a teacher are
equally long both are the same; else G-VBSM counts a teacher for more in views of which its logits
are longer, and here all teachers count alike in every view.

Shape suffixes: B images, C channels, H W pixels, K classes, D features, X either, M networks.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from distill_datasets.errors import refuse
from distill_datasets.models.architecture import Architecture, last_linear
from distill_datasets.models.weights import built, frozen
from distill_datasets.runtime.precision import at_least_float32, computing_in
from distill_datasets.soft_labels.codes import Classifier
from distill_datasets.types import Shape
from distill_datasets.views.relabel import EnsembleSettings, Relabel

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class TeacherEnsemble:
    """The networks of a squeeze stage with the settings of `relabel`.

    They are copies: BatchNorm in batch mode neither reads nor moves the running statistics of the
    networks that were given. Threads may ask side by side.
    """

    classifier: Classifier | None = None
    """Of the one teacher whose features are stored; None where logits are."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        settings: EnsembleSettings,
        shape: Shape,
        device: torch.device,
        *,
        features: bool,
    ) -> None:
        """Take the networks that have a weight.

        Args:
            modules: as many networks as there are weights.
            settings: how they label.
            shape: of one image.
            device: where they label.
            features: label with the features of the one network that has a weight.

        Raises:
            RecipeError: batch statistics of a network without BatchNorm, or features of one that
                does not end in a linear layer.
        """
        weights = settings.weights_of(len(modules))
        used = [(module, weight) for module, weight in zip(modules, weights, strict=True) if weight]
        total = sum(weight for _, weight in used)
        self._weights = [weight / total for _, weight in used]
        self._modules = [copy.deepcopy(module).to(device).eval() for module, _ in used]
        self._precision = settings.precision
        self._rescaled = settings.teachers == "rescaled"
        for module in self._modules:
            refuse(_module_problems(module, settings, shape, features))
        if features:
            self.classifier = _split(self._modules[0], shape)
        if settings.batch_norm == "batch":
            # these layers normalize by the images they are given, the others stay in eval mode
            for module in self._modules:
                for layer in _norms(module):
                    layer.train()
                    layer.track_running_stats = False

    @torch.no_grad()
    def __call__(self, images_BCHW: Tensor, group_B: Tensor) -> Tensor:
        """Logits (B, K), or features (B, D) where there is a `classifier`.

        Each row depends on its own view alone, and with batch statistics on its group.

        Args:
            images_BCHW: in the student's input space, on the device.
            group_B: images of one group stand together and share BatchNorm statistics.
        """
        # one forward pass per group: its mean and variance are over the group's images alone
        _, sizes = torch.unique_consecutive(group_B, return_counts=True)
        groups = torch.split(images_BCHW, sizes.tolist())
        with computing_in(self._precision, images_BCHW.device):
            outputs = [torch.cat([module(group) for group in groups]) for module in self._modules]
        outputs = [at_least_float32(output_BK) for output_BK in outputs]
        if self._rescaled:
            # z_m <- z_m * mean_m(|z_m|) / |z_m|, one length |z_m| per view: see above
            lengths = [output_BK.norm(dim=1, keepdim=True) for output_BK in outputs]
            mean_B1 = torch.stack(lengths).mean(dim=0)
            outputs = [
                output_BK * (mean_B1 / length_B1)
                for output_BK, length_B1 in zip(outputs, lengths, strict=True)
            ]
        if len(outputs) == 1:
            return outputs[0]
        mean_BK = torch.zeros_like(outputs[0])
        for weight, output_BK in zip(self._weights, outputs, strict=True):
            mean_BK += weight * output_BK
        return mean_BK


def ensemble_problems(
    settings: Relabel, architectures: Sequence[Architecture], shape: Shape
) -> Iterator[str]:
    """What the networks of a squeeze stage cannot follow, before it trains them."""
    problems = list(settings.problems(shape, len(architectures)))
    yield from problems
    features = settings.store == "features"
    if not problems and (features or settings.batch_norm == "batch"):
        weights = settings.weights_of(len(architectures))
        for architecture, weight in zip(architectures, weights, strict=True):
            if weight:
                untrained = frozen(built(architecture, shape))
                yield from _module_problems(untrained, settings, shape, features)


def _module_problems(
    module: nn.Module, settings: EnsembleSettings, shape: Shape, features: bool
) -> Iterator[str]:
    if settings.batch_norm == "batch" and not _norms(module):
        yield (
            "relabel.batch_norm: batch needs teachers with BatchNorm, got one without; set "
            "batch_norm: eval or squeeze.network.norm: batch"
        )
    if features and _split(copy.deepcopy(module), shape) is None:
        yield (
            "relabel.store: features needs a teacher that ends in a linear layer and gives all of "
            "its input, which this one does not; set store: logits"
        )


def _norms(module: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d]:
    return [layer for layer in module.modules() if isinstance(layer, NORMS)]


@torch.no_grad()
def _split(module: nn.Module, shape: Shape) -> Classifier | None:
    """Take the last linear layer off a network, which then gives its input; None if it cannot."""
    found = last_linear(module)
    if found is None or not found[0]:
        return None
    name, last = found
    # W f + b of the features f of any image tells whether the layer is the end: if anything came
    # after it, or the layer saw a part of f only, the logits would be others
    rng = torch.Generator().manual_seed(0)
    probe_BCHW = torch.randn(2, shape.c, shape.h, shape.w, generator=rng).to(last.weight.device)
    logits_BK = module(probe_BCHW)
    module.set_submodule(name, nn.Identity())
    bias_K = last.weight.new_zeros(len(last.weight)) if last.bias is None else last.bias
    classifier = Classifier(last.weight.detach().float().cpu(), bias_K.detach().float().cpu())
    features_BD = module(probe_BCHW)
    if features_BD.shape != (2, last.in_features):
        return None
    same = torch.allclose(classifier(features_BD.float()), logits_BK.float(), rtol=1e-3, atol=1e-3)
    return classifier if same else None
