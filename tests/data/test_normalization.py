"""The way into the student's input space: statistics of train, exact where they can be."""

import logging

import pytest
import torch
from support.image_sets import noise

from distill_datasets.data import normalization
from distill_datasets.data.decoding import Split
from distill_datasets.data.normalization import SPAN, Normalization, zca_memory_bytes
from distill_datasets.errors import DataError


def split(images_NCHW: torch.Tensor) -> Split:
    """Images with labels that nothing reads."""
    return Split(images_NCHW, torch.zeros(len(images_NCHW), dtype=torch.int64))


def unit(images_NCHW: torch.Tensor) -> torch.Tensor:
    """The per-image part of the whitening, written out in double precision."""
    values_ND = images_NCHW.double().flatten(1)
    centered_ND = values_ND - values_ND.mean(1, keepdim=True)
    return centered_ND / centered_ND.norm(dim=1, keepdim=True)


def test_black_and_white_have_mean_one_half_and_deviation_one_half() -> None:
    images_NCHW = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    fitted = Normalization.fit(split(images_NCHW), "mean_std", 0.1)
    assert fitted.display_mean_C.tolist() == [0.5]
    assert fitted.display_std_C.tolist() == [0.5]
    assert fitted.apply(images_NCHW).flatten().tolist() == [-1.0, 1.0]


def test_statistics_equal_those_of_all_pixels_at_once() -> None:
    images_NCHW = noise(50, 3, 4)
    fitted = Normalization.fit(split(images_NCHW), "mean_std", 0.1)
    pixels_CM = (images_NCHW.double() / 255).transpose(0, 1).flatten(1)
    assert torch.allclose(fitted.display_mean_C.double(), pixels_CM.mean(1), atol=1e-7)
    deviations_C = pixels_CM.std(1, correction=0)
    assert torch.allclose(fitted.display_std_C.double(), deviations_C, atol=1e-7)


def test_a_constant_channel_gets_the_deviation_one() -> None:
    images_NCHW = noise(9, 2, 3)
    images_NCHW[:, 1] = 51
    fitted = Normalization.fit(split(images_NCHW), "mean_std", 0.1)
    assert fitted.display_std_C[1] == 1
    assert fitted.apply(images_NCHW)[:, 1].abs().max() < 1e-6


def test_published_pixels_go_the_same_way_as_real_ones_under_mean_std() -> None:
    images_NCHW = noise(5, 3, 2)
    fitted = Normalization.fit(split(images_NCHW), "mean_std", 0.1)
    pixels_NCHW = images_NCHW.float() / 255
    shown = (pixels_NCHW - fitted.display_mean_C[:, None, None]) / fitted.display_std_C[
        :, None, None
    ]
    assert torch.equal(shown, fitted.apply(images_NCHW))


def test_whitened_covariance_has_the_regularized_eigenvalues() -> None:
    images_NCHW = noise(300, 3, 3)
    fitted = Normalization.fit(split(images_NCHW), "zca", 0.1)
    unit_ND = unit(images_NCHW)
    lambda_D = torch.linalg.eigvalsh(unit_ND.T @ unit_ND / 300).clamp(min=0)
    whitened_ND = fitted.apply(images_NCHW).double().flatten(1)
    found_D = torch.linalg.eigvalsh(whitened_ND.T @ whitened_ND / 300)
    expected_D = lambda_D / (lambda_D + 0.1 * lambda_D.mean())
    assert torch.allclose(found_D, expected_D.sort().values, atol=1e-4)


def test_the_matrix_undone_gives_the_unit_image_back() -> None:
    images_NCHW = noise(200, 1, 4)
    fitted = Normalization.fit(split(images_NCHW), "zca", 0.1)
    assert fitted.whitening_DD is not None
    inverse_DD = torch.linalg.inv(fitted.whitening_DD.double())
    back_ND = fitted.apply(images_NCHW).double().flatten(1) @ inverse_DD
    assert torch.allclose(back_ND, unit(images_NCHW), atol=1e-5)


def test_the_order_of_the_values_of_an_image_does_not_matter() -> None:
    images_NCHW = noise(200, 3, 3)
    transposed = images_NCHW.permute(0, 2, 3, 1).contiguous()
    chw = Normalization.fit(split(images_NCHW), "zca", 0.1).apply(images_NCHW)
    hwc = Normalization.fit(split(transposed), "zca", 0.1).apply(transposed)
    assert torch.allclose(chw, hwc.permute(0, 3, 1, 2), atol=1e-4)


def test_a_swap_of_channels_and_rows_is_noticed() -> None:
    images_NCHW = noise(200, 3, 3)
    fitted = Normalization.fit(split(images_NCHW), "zca", 0.1)
    per_channel = (
        torch.tensor([10, 100, 200], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 3, 3)
    )
    swapped = per_channel.permute(0, 2, 1, 3)
    right, wrong = fitted.apply(per_channel), fitted.apply(swapped).permute(0, 2, 1, 3)
    assert (right - wrong).abs().max() > 0.1 * right.abs().max()


@pytest.mark.parametrize("kind", ["mean_std", "zca"])
def test_test_images_are_normalized_with_the_statistics_of_train(kind: str) -> None:
    train, test = noise(100, 1, 3), noise(10, 1, 3, seed=1) // 2
    fitted = Normalization.fit(split(train), kind, 0.1)
    together = fitted.apply(torch.cat([train, test]))
    assert torch.allclose(together[100:], fitted.apply(test), atol=1e-6)
    refitted = Normalization.fit(split(test), kind, 0.1)
    assert not torch.allclose(refitted.apply(test), fitted.apply(test), atol=1e-2)


def test_a_constant_image_whitens_to_zeros() -> None:
    fitted = Normalization.fit(split(noise(50, 1, 3)), "zca", 0.1)
    assert fitted.apply(torch.full((1, 1, 3, 3), 128, dtype=torch.uint8)).abs().max() < 1e-5


def test_the_displayed_range_covers_four_deviations_of_whitened_train() -> None:
    images_NCHW = noise(200, 3, 4)
    fitted = Normalization.fit(split(images_NCHW), "zca", 0.1)
    low_C, high_C = ((edge - fitted.display_mean_C) / fitted.display_std_C for edge in (0.0, 1.0))
    root_mean_square_C = fitted.apply(images_NCHW).square().mean(dim=(0, 2, 3)).sqrt()
    assert torch.allclose(high_C, SPAN * root_mean_square_C, rtol=1e-3)
    assert torch.equal(low_C, -high_C)


def test_chunks_do_not_change_the_whitening(monkeypatch: pytest.MonkeyPatch) -> None:
    images_NCHW = noise(100, 1, 3)
    whole = Normalization.fit(split(images_NCHW), "zca", 0.1).apply(images_NCHW)
    monkeypatch.setattr(normalization, "CHUNK_VALUES", 7 * 9)
    parts = Normalization.fit(split(images_NCHW), "zca", 0.1).apply(images_NCHW)
    assert torch.allclose(whole, parts, atol=1e-5)


def test_memory_is_stated_and_refused_before_it_is_spent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(normalization, "available_bytes", lambda: 2 * 1024**3)
    images_NCHW = torch.zeros((1, 3, 224, 224), dtype=torch.uint8)
    with (
        caplog.at_level(logging.INFO, logger="distill_datasets"),
        pytest.raises(DataError, match=r"150528 values needs 506.5 GiB and 2.0 GiB are free"),
    ):
        Normalization.fit(split(images_NCHW), "zca", 0.1)
    assert "506.46 GiB of memory to fit it (2.00 free)" in caplog.text


def test_memory_grows_with_the_square_of_the_values() -> None:
    assert zca_memory_bytes(3072) == 6 * 4 * 3072**2


def test_nothing_to_whiten_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to whiten"):
        Normalization.fit(split(torch.zeros((3, 1, 2, 2), dtype=torch.uint8)), "zca", 0.1)


@pytest.mark.parametrize("kind", ["mean_std", "zca"])
def test_tensors_bring_the_same_normalization_back(kind: str) -> None:
    images_NCHW = noise(30, 3, 2)
    fitted = Normalization.fit(split(images_NCHW), kind, 0.2)
    again = Normalization.from_tensors(fitted.to_tensors())
    assert again.describe() == fitted.describe()
    assert torch.equal(again.apply(images_NCHW), fitted.apply(images_NCHW))
    moved = fitted.to(torch.device("cpu"))
    assert torch.equal(moved.apply(images_NCHW), fitted.apply(images_NCHW))


def test_the_description_names_the_matrix_by_hash() -> None:
    described = Normalization.fit(split(noise(30, 1, 2)), "zca", 0.1).describe()
    assert described["kind"] == "zca"
    assert described["mean"] == [0.5]
    assert described["zca"]["matrix_bytes"] == 4 * 4 * 4
    assert described["zca"]["fitted_images"] == 30
    assert len(described["zca"]["matrix_sha256"]) == 64
    assert Normalization.fit(split(noise(3, 1, 2)), "mean_std", 0.1).describe()["zca"] is None
