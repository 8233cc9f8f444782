"""How the labels of views are stored: float16 logits, the largest of them, or features.

Every code turns what a teacher says of B views into named arrays, one row per view, and these back
into logits. Logits are stored before any temperature, so that a student may choose its own.

Shape suffixes: B views, K classes, D features, k kept logits.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from distill_datasets.errors import ArtifactError, DistillError

LARGEST_INT16 = 2**15


class Classifier:
    """The linear layer at the end of a teacher; `weight_KD` and `bias_K` in float32.

    A device that asks keeps a copy of both: a student decodes labels at every step.
    """

    def __init__(self, weight_KD: Tensor, bias_K: Tensor) -> None:
        self.weight_KD, self.bias_K = weight_KD, bias_K
        self._copies = dict[torch.device, tuple[Tensor, Tensor]]()

    def __call__(self, features_BD: Tensor) -> Tensor:
        """Logits (B, K) of features (B, D), on their device."""
        return F.linear(features_BD, *self._on(features_BD.device))

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._copies:  # threads that come together make equal copies
            self._copies[device] = self.weight_KD.to(device), self.bias_K.to(device)
        return self._copies[device]


class Code(ABC):
    """A way to store labels."""

    of_features: ClassVar[bool] = False
    """Whether `encode` takes the teacher's features instead of its logits."""

    @property
    @abstractmethod
    def columns(self) -> dict[str, tuple[torch.dtype, int]]:
        """Names of its arrays, each with its dtype and length per view."""

    @abstractmethod
    def encode(self, output_BX: Tensor) -> dict[str, Tensor]:
        """The arrays of B views, on the CPU.

        Args:
            output_BX: logits (B, K), or features (B, D) where `of_features`.

        Raises:
            DistillError: a number is too large for float16, or none.
        """

    @abstractmethod
    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, K) in float32, on the device of the arrays."""

    @property
    def label_bytes(self) -> int:
        """Bytes that one label takes."""
        return sum(dtype.itemsize * length for dtype, length in self.columns.values())

    @property
    def constants(self) -> dict[str, Tensor]:
        """What is stored once for all labels."""
        return {}


@dataclass(frozen=True)
class LogitCode(Code):
    """All logits in float16: 2 K bytes."""

    classes: int

    @property
    def columns(self) -> dict[str, tuple[torch.dtype, int]]:
        return {"logits": (torch.float16, self.classes)}

    def encode(self, output_BX: Tensor) -> dict[str, Tensor]:
        return {"logits": _half(output_BX)}

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        return columns["logits"].float()


@dataclass(frozen=True)
class TopKCode(Code):
    """The k largest logits in float16, in falling order, with their classes: 4 k bytes.

    The other logits are decoded as minus infinity: a softmax at any temperature shares all of the
    probability among the kept classes (LPQLD). Of equal logits the lower class is kept.
    """

    classes: int
    k: int

    @property
    def columns(self) -> dict[str, tuple[torch.dtype, int]]:
        places = torch.int16 if self.classes <= LARGEST_INT16 else torch.int32
        return {"indices": (places, self.k), "values": (torch.float16, self.k)}

    def encode(self, output_BX: Tensor) -> dict[str, Tensor]:
        values_BK, indices_BK = _half(output_BX).float().sort(dim=1, descending=True, stable=True)
        return {
            "indices": indices_BK[:, : self.k].to(self.columns["indices"][0]),
            "values": values_BK[:, : self.k].half(),
        }

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        values_Bk = columns["values"].float()
        logits_BK = values_Bk.new_full((len(values_Bk), self.classes), -torch.inf)
        return logits_BK.scatter_(1, columns["indices"].long(), values_Bk)


@dataclass(frozen=True)
class FeatureCode(Code):
    """The classifier's input in float16, and the classifier once: 2 D bytes.

    A ResNet-18 has 512 features: half of what 1000 logits take, and a twentieth of 10,450.
    """

    classifier: Classifier
    of_features: ClassVar[bool] = True

    @property
    def columns(self) -> dict[str, tuple[torch.dtype, int]]:
        return {"features": (torch.float16, self.classifier.weight_KD.shape[1])}

    def encode(self, output_BX: Tensor) -> dict[str, Tensor]:
        return {"features": _half(output_BX)}

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        return self.classifier(columns["features"].float())

    @property
    def constants(self) -> dict[str, Tensor]:
        return {"weight_KD": self.classifier.weight_KD, "bias_K": self.classifier.bias_K}


def code_of(top_k: int | None, classes: int, classifier: Classifier | None) -> Code:
    """The code of a recipe.

    Args:
        top_k: logits that are kept; None for all.
        classes: of the teacher.
        classifier: of the teacher, where its features are stored.
    """
    if classifier is not None:
        return FeatureCode(classifier)
    return LogitCode(classes) if top_k is None else TopKCode(classes, top_k)


def published_code(
    lengths: Mapping[str, int], classes: int, constants: Mapping[str, Tensor]
) -> Code:
    """The code of a published set, told by its columns.

    Args:
        lengths: numbers per view of the columns; those of other columns are not looked at.
        classes: of the dataset.
        constants: what the code stored once.

    Raises:
        ArtifactError: no known columns, or features without their classifier.
    """
    if "logits" in lengths:
        return LogitCode(classes)
    if "values" in lengths and "indices" in lengths:
        return TopKCode(classes, lengths["values"])
    if "features" in lengths and {"weight_KD", "bias_K"} <= constants.keys():
        return FeatureCode(Classifier(constants["weight_KD"], constants["bias_K"]))
    raise ArtifactError(
        f"relabel: got the columns {sorted(lengths)} and the constants {sorted(constants)}, "
        "expected logits, or indices and values, or features with weight_KD and bias_K"
    )


def _half(output_BX: Tensor) -> Tensor:
    half_BX = output_BX.half().cpu()
    if not bool(half_BX.isfinite().all()):
        raise DistillError(
            f"relabel: a teacher says {output_BX.abs().max().item():.4g}, which float16 cannot "
            "hold; check the teacher on real images"
        )
    return half_BX
