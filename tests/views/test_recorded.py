"""Views: what is drawn, and that what is recorded is rendered again bit for bit."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from support.tiny import values
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from distill_datasets.data.normalization import InputSpace
from distill_datasets.files.artifacts import open_rows, write_rows
from distill_datasets.runtime.draws import draws
from distill_datasets.training.examples import Stored
from distill_datasets.types import Shape
from distill_datasets.views.crops import RandomCrop
from distill_datasets.views.recorded import Views, concatenated, draw_views, replay, views_of
from distill_datasets.views.relabel import Relabel

SAME = InputSpace(torch.zeros(3), torch.ones(3))
SIZE = (6, 9)
IMAGES = torch.randint(
    0, 256, (20, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)


def drawn(
    epoch: int = 0, count: int = 20, size: tuple[int, int] = SIZE, **settings: object
) -> Views:
    section = Relabel.model_validate({"batch": 8, **settings})
    return draw_views(section, epoch, count, size, draws(3, "relabel"), section.norm_groups)


def plain(*places: int, **changed: object) -> Views:
    """Whole images, or with some columns changed."""
    image_B = torch.tensor(places, dtype=torch.int32)
    whole_B4 = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(places), 1)
    no_B = torch.zeros(len(places), dtype=torch.bool)
    views = Views(
        image_B, whole_B4, no_B, image_B, whole_B4, no_B,
        torch.zeros(len(places), 4, dtype=torch.int32), torch.ones(len(places)), image_B,
    )  # fmt: skip
    return views._replace(**changed)


def pixels(images_NCHW: Tensor, views: Views) -> Tensor:
    """Rendered views in [0, 255]."""
    channels = images_NCHW.shape[1]
    return 255 * replay(images_NCHW, views, InputSpace(torch.zeros(channels), torch.ones(channels)))


def test_a_whole_view_is_the_stored_image_bit_for_bit() -> None:
    space = InputSpace(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]))
    stored = Stored(IMAGES, torch.zeros(20, 2), space)
    places = [3, 0, 19, 3]
    assert torch.equal(
        replay(IMAGES, plain(*places), space), stored(torch.tensor(places)).images_BCHW
    )


def test_a_crop_is_cut_out_enlarged_and_then_mirrored() -> None:
    crop_4 = torch.tensor([1 / 6, 2 / 9, 3 / 6, 5 / 9])
    cut_BCHW = IMAGES[4:5, :, 1:4, 2:7].float()
    expected_BCHW = F.interpolate(cut_BCHW, SIZE, mode="bilinear")
    views = plain(4, 4, crop_B4=crop_4.repeat(2, 1), flip_B=torch.tensor([False, True]))
    both = pixels(IMAGES, views)
    assert torch.allclose(both[0], expected_BCHW[0], atol=1e-3)
    assert torch.allclose(both[1], expected_BCHW[0].flip(-1), atol=1e-3)


def test_a_shift_brings_black_from_beyond_the_edge() -> None:
    image_NCHW = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    down_left = torch.tensor([[-1 / 3, 1 / 3, 1, 1]])
    shown = pixels(image_NCHW, plain(0, crop_B4=down_left))
    assert values(shown) == pytest.approx([0, 0, 0, 2, 3, 0, 5, 6, 0], abs=1e-4)
    mirrored = pixels(image_NCHW, plain(0, crop_B4=down_left, flip_B=torch.tensor([True])))
    assert values(mirrored) == pytest.approx([0, 0, 0, 0, 3, 2, 0, 6, 5], abs=1e-4)


def test_rows_and_columns_of_tiles_change_places_before_the_crop() -> None:
    image_NCHW = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    rows_then_columns = torch.tensor([[1, 0, 1, 0]], dtype=torch.int32)
    views = plain(0, tiles_BT=rows_then_columns, partner_tiles_BT=rows_then_columns)
    expected = [10, 11, 8, 9, 14, 15, 12, 13, 2, 3, 0, 1, 6, 7, 4, 5]
    assert values(pixels(image_NCHW, views)) == pytest.approx(expected, abs=1e-4)
    rows_only = torch.tensor([[1, 0, 0, 1]], dtype=torch.int32)
    top_half = torch.tensor([[0, 0, 0.5, 1]])
    views = plain(0, tiles_BT=rows_only, partner_tiles_BT=rows_only, crop_B4=top_half)
    assert values(pixels(image_NCHW, views)[0, 0, 0]) == pytest.approx([8, 9, 10, 11], abs=1e-4)


def test_cutmix_shows_the_partners_own_view_inside_of_the_box() -> None:
    images_NCHW = torch.arange(18, dtype=torch.uint8).view(2, 1, 3, 3)
    views = plain(
        0,
        partner_B=torch.tensor([1], dtype=torch.int32),
        partner_flip_B=torch.tensor([True]),
        box_B4=torch.tensor([[0, 1, 2, 3]], dtype=torch.int32),
    )
    # the partner is 9..17, mirrored: 11 10 9 / 14 13 12 / 17 16 15
    expected = [0, 10, 9, 3, 13, 12, 6, 7, 8]
    assert values(pixels(images_NCHW, views)) == pytest.approx(expected, abs=1e-4)


def test_mixup_weighs_the_own_view_by_its_share() -> None:
    images_NCHW = torch.tensor([[100, 20], [200, 60]], dtype=torch.uint8).view(2, 1, 1, 2)
    views = plain(
        0,
        flip_B=torch.tensor([True]),
        partner_B=torch.tensor([1], dtype=torch.int32),
        share_B=torch.tensor([0.75]),
    )
    # the own view is 20 100, the partner's 200 60
    assert values(pixels(images_NCHW, views)) == pytest.approx([65, 90], abs=1e-4)


EVERYTHING = [
    {"mix": "cutmix"},
    {"mix": "mixup", "crop": None, "pad": 2},
    {"mix": "cutmix", "tiles": 3},
]


@pytest.mark.parametrize("settings", EVERYTHING)
def test_a_view_has_the_same_bits_in_every_batch_order_and_number_of_threads(
    settings: dict[str, object], tmp_path: Path
) -> None:
    views = drawn(**settings)
    together = replay(IMAGES, views, SAME)
    order_B = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    mixed_with_others = concatenated([views.at(order_B), drawn(1, **settings)])
    write_rows(tmp_path / "images.npy", tuple(IMAGES.shape), iter([IMAGES]))
    mapped_NCHW = open_rows(tmp_path / "images.npy")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        shuffled = replay(mapped_NCHW, mixed_with_others, SAME)[:20]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(shuffled, together[order_B])
    for row in range(20):
        alone = replay(IMAGES, views.at(slice(row, row + 1)), SAME)
        assert torch.equal(alone[0], together[row])


def test_unmixed_views_among_mixed_ones_stay_themselves() -> None:
    views = drawn(mix="cutmix")
    unmixed = drawn(mix="none")
    assert torch.equal(views.crop_B4, unmixed.crop_B4)
    both = replay(IMAGES, concatenated([views, unmixed]), SAME)
    assert torch.equal(both[:20], replay(IMAGES, views, SAME))
    assert torch.equal(both[20:], replay(IMAGES, unmixed, SAME))
    assert not torch.equal(both[:20], both[20:])


def test_named_arrays_are_the_records_again() -> None:
    for views in (drawn(), drawn(tiles=3)):
        again = views_of({**views.columns(), "logits": torch.zeros(20, 3)})
        for field, column in views._asdict().items():
            found = again._asdict()[field]
            assert found is None if column is None else torch.equal(found, column)
    assert sorted(drawn().columns()) == [
        "box", "crop", "flip", "group", "image", "partner", "partner_crop", "partner_flip", "share",
    ]  # fmt: skip


def test_an_epoch_views_every_image_once_and_depends_on_its_number_alone() -> None:
    first, again, second = drawn(0), drawn(0), drawn(1)
    for own, same, other in zip(first[:6], again[:6], second[:6], strict=True):
        assert torch.equal(own, same) and not torch.equal(own, other)
    for views in (first, second):
        assert sorted(views.image_B.tolist()) == list(range(20))
    assert [column.dtype for column in first[:9]] == [
        torch.int32, torch.float32, torch.bool, torch.int32, torch.float32, torch.bool,
        torch.int32, torch.float32, torch.int32,
    ]  # fmt: skip


def test_partners_are_views_of_the_same_batch_and_share_its_box() -> None:
    views = drawn()
    assert len({tuple(box) for box in views.box_B4.tolist()}) == 3
    for start, stop in ((0, 8), (8, 16), (16, 20)):
        batch = views.at(slice(start, stop))
        assert len({tuple(box) for box in batch.box_B4.tolist()}) == 1
        assert sorted(batch.partner_B.tolist()) == sorted(batch.image_B.tolist())
        place = {image: row for row, image in enumerate(batch.image_B.tolist())}
        partner_B = torch.tensor([place[image] for image in batch.partner_B.tolist()])
        assert torch.equal(batch.partner_crop_B4, batch.crop_B4[partner_B])
        assert torch.equal(batch.partner_flip_B, batch.flip_B[partner_B])
    unmixed = drawn(mix="none")
    assert torch.equal(unmixed.partner_B, unmixed.image_B) and not unmixed.box_B4.any()
    assert torch.equal(unmixed.partner_crop_B4, unmixed.crop_B4)
    mixed = drawn(mix="mixup", mix_alpha=0.8)
    assert not mixed.box_B4.any() and len(set(mixed.share_B.tolist())) == 3


def test_crops_are_whole_pixels_inside_of_the_image_with_torchvisions_areas() -> None:
    high, wide = 60, 90
    views = drawn(count=4000, size=(high, wide), batch=100)
    pixels_B4 = views.crop_B4 * torch.tensor([high, wide, high, wide])
    assert torch.allclose(pixels_B4, pixels_B4.round(), atol=1e-4)
    top_B, left_B, high_B, wide_B = pixels_B4.round().unbind(1)
    assert bool((top_B >= 0).all() & (top_B + high_B <= high).all())
    assert bool((left_B >= 0).all() & (left_B + wide_B <= wide).all())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.tensor(
            [
                RandomResizedCrop.get_params(
                    torch.empty(1, high, wide), [0.08, 1.0], [3 / 4, 4 / 3]
                )
                for _ in range(4000)
            ]
        ).float()
    ours = torch.stack([top_B, left_B, high_B, wide_B], dim=1)
    for mine_B, other_B in zip(
        [*ours.unbind(1), ours[:, 2] * ours[:, 3], ours[:, 3] / ours[:, 2]],
        [*theirs.unbind(1), theirs[:, 2] * theirs[:, 3], theirs[:, 3] / theirs[:, 2]],
        strict=True,
    ):
        at = torch.linspace(0.01, 0.99, 15)
        difference = (mine_B.quantile(at) - other_B.quantile(at)).abs().max()
        assert float(difference) < 0.08 * float(other_B.max() - other_B.min())
    assert float(views.flip_B.float().mean()) == pytest.approx(0.5, abs=0.03)


def test_a_shape_that_never_fits_gives_the_largest_central_one() -> None:
    views = drawn(count=9, size=(2, 40), crop=RandomCrop(smallest=1, aspect=1))
    assert views.crop_B4.tolist() == [pytest.approx([0, 19 / 40, 1, 2 / 40])] * 9


def test_boxes_have_the_partners_share_of_the_area_unless_the_edge_cuts_them_off() -> None:
    views = drawn(count=6000, size=(32, 32), batch=2)
    top_B, left_B, bottom_B, right_B = views.box_B4[::2].float().unbind(1)
    assert bool((top_B >= 0).all() & (bottom_B <= 32).all() & (right_B <= 32).all())
    area_B = (bottom_B - top_B) * (right_B - left_B) / 1024
    # square of side s uniform in law: E of the visible part, s^2 = U(0, 1), is 0.39 (integral)
    side = torch.linspace(0, 1, 10001).sqrt()
    visible = ((side - side**2 / 4) ** 2).mean()
    assert float(area_B.mean()) == pytest.approx(float(visible), abs=0.02)


def test_groups_are_parts_of_a_batch() -> None:
    assert set(drawn().group_B.tolist()) == {-1}
    grouped = drawn(batch_norm="batch", groups=3)
    # batches of 8, 8 and 4 views in parts as even as can be; four are two pairs
    assert grouped.group_B.tolist() == (
        [0] * 3 + [1] * 3 + [2] * 2 + [3] * 3 + [4] * 3 + [5] * 2 + [6] * 2 + [7] * 2
    )
    assert drawn(batch_norm="batch").group_B.tolist() == [0] * 8 + [1] * 8 + [2] * 4


def test_a_last_batch_of_one_belongs_to_the_batch_before() -> None:
    section = Relabel(batch=8)
    assert section.batches(17) == [(0, 8), (8, 17)]
    assert section.batches(18) == [(0, 8), (8, 16), (16, 18)]
    assert section.batches(16) == [(0, 8), (8, 16)]
    assert section.batches(1) == [(0, 1)]
    assert Relabel(batch=8, epochs=10, keep=0.1).units(16) == 2
    assert Relabel(batch=8, epochs=10).units(16) == 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pad": 4}, "set crop: null"),
        ({"groups": 2}, "set batch_norm: batch"),
        ({"groups": 51, "batch_norm": "batch"}, "at least two"),
        ({"top_k": 3}, "store: top_k"),
        ({"store": "top_k"}, "got None"),
        ({"weights": [0.0, 0.0]}, "not all of them 0"),
        ({"crop": {"smallest": 0.5, "largest": 0.4}}, "at most largest"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Relabel.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tiles": 4}, "divisor of 8 and 10"),
        ({"store": "top_k", "top_k": 6}, "at most the 5 classes"),
        ({"weights": [1.0]}, "1 of them for 2 teachers"),
        ({"store": "features"}, "one teacher, got 2"),
    ],
)
def test_settings_that_do_not_fit_images_or_teachers_are_refused(
    settings: dict[str, object], said: str
) -> None:
    (problem,) = Relabel.model_validate(settings).problems(Shape(3, 8, 10, 5), 2)
    assert said in problem
    fitting = Relabel(tiles=2, store="features", weights=[0.0, 1.0])
    assert not list(fitting.problems(Shape(3, 8, 10, 5), 2))
