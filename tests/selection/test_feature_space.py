"""Images and orders of classes that are chosen in the features of a frozen backbone."""

from pathlib import Path

import pytest
import torch
from support.probe_problem import probed
from support.tiny import toy_real

from distill_datasets.canvases.class_order import ByFeatures
from distill_datasets.errors import DataError
from distill_datasets.runtime.draws import rng_for
from distill_datasets.selection.coresets import Herding, KCenter, Measured, Nearest, k_means


def rows_of(images_NCHW: torch.Tensor, real_NCHW: torch.Tensor) -> list[int]:
    """Which of the real images each of the others is."""
    bytes_NCHW = (images_NCHW * 255).round().byte()
    return [int((real_NCHW == image).flatten(1).all(dim=1).nonzero()[0, 0]) for image in bytes_NCHW]


def test_one_nearest_image_is_nearest_to_the_mean_of_its_class(tmp_path: Path) -> None:
    real, backbone = probed(tmp_path)
    features_ND = real.features_of(backbone).train_ND
    found_NCHW = Nearest(space=backbone).images(real, 1, rng_for(0, "nearest"))
    for label, row in enumerate(rows_of(found_NCHW, real.train.images_NCHW)):
        own_N = real.rows_of_class[label]
        distances_N = (features_ND[own_N] - features_ND[own_N].mean(dim=0)).square().sum(dim=1)
        assert row == int(own_N[distances_N.argmin()])


def test_several_nearest_images_are_of_one_cluster_each(tmp_path: Path) -> None:
    real, backbone = probed(tmp_path)
    own_N = real.rows_of_class[2]
    found_NCHW = Nearest(space=backbone).of_class(real, 2, 3, rng_for(0, "nearest"))
    rows = rows_of(found_NCHW, real.train.images_NCHW)
    clusters_N = k_means(real.features_of(backbone).train_ND[own_N], 3, rng_for(0, "nearest"))
    assert sorted(int(clusters_N[own_N.tolist().index(row)]) for row in rows) == [0, 1, 2]


@pytest.mark.parametrize("kind", [Herding, KCenter, Nearest])
def test_a_space_changes_what_is_chosen_and_has_to_be_known(
    kind: type[Measured], tmp_path: Path
) -> None:
    real, backbone = probed(tmp_path)
    chosen = [
        rows_of(kind(space=space).images(real, 2, rng_for(0, "a")), real.train.images_NCHW)
        for space in (None, backbone)
    ]
    assert chosen[0] != chosen[1] and len(set(chosen[1])) == 8
    with pytest.raises(DataError, match="squeezed/member are not there"):
        kind(space=backbone).images(toy_real(real.shape), 1, rng_for(0, "a"))


def test_classes_that_a_backbone_takes_for_alike_are_neighbors(tmp_path: Path) -> None:
    real, backbone = probed(tmp_path)
    known = real.features_of(backbone)
    known.moments.centers_KD[:] = torch.eye(4, 24)
    known.moments.centers_KD[3] = torch.tensor([0.0, 0.9, *[0.0] * 22])
    known.moments.centers_KD[0] += 0.5 * known.moments.centers_KD[1]
    order = ByFeatures(backbone=backbone).arrange(real, [4])
    assert sorted(order) == [0, 1, 2, 3] and abs(order.index(1) - order.index(3)) == 1
