"""Codes of labels: what is kept of the logits, and in how many bytes."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from distill_datasets.errors import ArtifactError, DistillError
from distill_datasets.soft_labels.codes import (
    Classifier,
    FeatureCode,
    LogitCode,
    TopKCode,
    code_of,
    published_code,
)

LOGITS = torch.tensor([[1.5, -2.0, 0.25, 8.0], [3.0, 3.0, -1.0, 3.0]])


def test_logits_are_rounded_to_float16_once() -> None:
    code = LogitCode(4)
    assert torch.equal(code.decode(code.encode(LOGITS)), LOGITS)
    third = torch.tensor([[1 / 3, 0, 0, 0]])
    found = code.decode(code.encode(third))
    assert found.dtype == torch.float32 and found[0, 0] == torch.tensor(1 / 3).half().float()


def test_the_largest_logits_stand_in_falling_order_and_ties_go_to_the_lower_class() -> None:
    code = TopKCode(4, 2)
    stored = code.encode(LOGITS)
    assert stored["indices"].tolist() == [[3, 0], [0, 1]]
    assert stored["values"].tolist() == [[8.0, 1.5], [3.0, 3.0]]
    low = -torch.inf
    assert code.decode(stored).tolist() == [[1.5, low, low, 8.0], [3.0, 3.0, low, low]]
    shares = torch.softmax(code.decode(stored)[1] / 20, dim=0)
    assert shares.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_features_give_the_logits_of_the_classifier() -> None:
    rng = torch.Generator().manual_seed(0)
    weight_KD, bias_K = (torch.randn(size, generator=rng) for size in ((7, 3), (7,)))
    features_BD = torch.randn(5, 3, generator=rng)
    code = FeatureCode(Classifier(weight_KD, bias_K))
    expected = F.linear(features_BD.half().float(), weight_KD, bias_K)
    assert torch.equal(code.decode(code.encode(features_BD)), expected)
    assert code.of_features and set(code.constants) == {"weight_KD", "bias_K"}


def test_a_classifier_is_copied_to_a_device_once() -> None:
    classifier, device = Classifier(torch.ones(7, 3), torch.ones(7)), torch.device("meta")
    with mock.patch.object(F, "linear", wraps=F.linear) as asked:
        for _ in range(3):
            assert classifier(torch.ones(5, 3, device=device)).is_meta
        assert classifier(torch.ones(5, 3)).tolist() == [[4.0] * 7] * 5
    *elsewhere, here = [call.args[1:] for call in asked.call_args_list]
    assert all(
        own is first for copy in elsewhere for own, first in zip(copy, elsewhere[0], strict=True)
    )
    assert here[0] is classifier.weight_KD and here[1] is classifier.bias_K


def test_bytes_of_a_label_on_imagenet() -> None:
    resnet18 = FeatureCode(Classifier(torch.zeros(10_450, 512), torch.zeros(10_450)))
    assert LogitCode(1000).label_bytes == 2000
    assert TopKCode(1000, 100).label_bytes == 400
    assert resnet18.label_bytes == 1024
    # classes beyond int16 take two bytes more
    assert TopKCode(2**15, 10).label_bytes == 40
    assert TopKCode(2**15 + 1, 10).label_bytes == 60
    stored = TopKCode(40_000, 1).encode(torch.eye(40_000)[39_999:])
    assert stored["indices"].tolist() == [[39_999]]


@pytest.mark.parametrize("code", [LogitCode(5), TopKCode(5, 2)])
def test_columns_tell_the_code(code: LogitCode | TopKCode) -> None:
    stored = code.encode(torch.arange(10.0).view(2, 5))
    assert {
        name: (values.dtype, values.shape[1]) for name, values in stored.items()
    } == code.columns
    lengths = {name: values.shape[1] for name, values in stored.items()}
    assert published_code({**lengths, "crop": 4}, 5, {}) == code


def test_the_recipe_names_the_code() -> None:
    assert code_of(None, 9, None) == LogitCode(9)
    assert code_of(3, 9, None) == TopKCode(9, 3)
    with pytest.raises(ArtifactError, match="weight_KD and bias_K"):
        published_code({"features": 3}, 9, {})


@pytest.mark.parametrize("wrong", [1e6, float("nan")])
def test_numbers_that_float16_cannot_hold_are_refused(wrong: float) -> None:
    with pytest.raises(DistillError, match="float16"):
        LogitCode(2).encode(torch.tensor([[wrong, 0.0]]))
