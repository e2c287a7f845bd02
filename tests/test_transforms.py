"""Batched transforms against torchvision's, image by image."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from dmlkit.transforms import (
    RandomResizedCropFlip,
    RandomView,
    centre_crop,
    first_view,
    resample,
    resize_matrix,
)


def noise(count, height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 40, 50), (3, 7, 30, 20), (10, 0, 5, 50), (39, 49, 1, 1)],
    ids=["whole image", "shrinking and enlarging", "flat", "one pixel"],
)
def test_a_crop_is_resized_as_torchvision_does_with_antialiasing(box):
    images = noise(2, 40, 50)
    top, left, height, width = (torch.tensor([value] * 2) for value in box)

    ours = resample(images, resize_matrix(top, height, 24, 40), resize_matrix(left, width, 24, 50))

    theirs = reference.resized_crop(
        images.float() / 255, *box, [24, 24], interpolation=v2.InterpolationMode.BILINEAR
    )
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_drawn_boxes_have_torchvisions_distribution():
    torch.manual_seed(0)
    ours = RandomResizedCropFlip(8, seed=0).draw_boxes(4000, 60, 90)
    theirs = [
        v2.RandomResizedCrop(8, scale=(0.16, 1.0)).make_params([torch.empty(3, 60, 90)])
        for _ in range(4000)
    ]
    for name, values in zip(("top", "left", "height", "width"), ours, strict=True):
        expected = torch.tensor([float(box[name]) for box in theirs])
        quantiles = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
        difference = values.float().quantile(quantiles) - expected.quantile(quantiles)
        assert difference.abs().max() <= 4, name  # of 60 or 90 pixels


def test_boxes_stay_inside_the_image_and_fall_back_to_its_centre():
    # No box of at least the whole area with these ratios fits a flat image.
    top, left, height, width = RandomResizedCropFlip(8, seed=0, scale=(1.0, 1.0)).draw_boxes(
        50, 20, 80
    )
    assert set(height.tolist()) == {20} and set(width.tolist()) == {27}
    assert set(left.tolist()) == {26} and set(top.tolist()) == {0}


def test_a_certain_flip_mirrors_each_image():
    images = noise(3, 16, 20)
    # No square holds the whole of a flat image, so the crop falls back to the central square.
    square = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain = RandomResizedCropFlip(16, seed=0, flip=0.0, **square)(images)
    mirrored = RandomResizedCropFlip(16, seed=0, flip=1.0, **square)(images)
    assert torch.allclose(plain, images[..., 2:18].float() / 255, atol=1e-6)
    assert torch.allclose(mirrored, plain.flip(-1), atol=1e-6)


def test_the_same_seed_gives_the_same_crops_and_another_seed_others():
    images = noise(4, 20, 20)
    one, same, other = (RandomResizedCropFlip(10, seed=seed)(images) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_each_image_of_a_batch_gets_its_own_crop():
    images = noise(1, 20, 20).expand(2, -1, -1, -1)
    first, second = RandomResizedCropFlip(10, seed=0)(images)
    assert not torch.equal(first, second)


def test_centre_crop_takes_the_middle_and_scales_to_one():
    images = torch.zeros(1, 3, 6, 6, dtype=torch.uint8)
    images[..., 2:4, 2:4] = 255
    assert torch.equal(centre_crop(images, 2), torch.ones(1, 3, 2, 2))


def test_centre_crop_refuses_to_enlarge():
    with pytest.raises(ValueError, match="CACHE_SIZE"):
        centre_crop(noise(1, 4, 20), 8)


def test_random_view_takes_all_views_and_first_view_the_plain_one():
    features = torch.arange(4).half()[None, :, None].expand(500, 4, 2)
    counts = RandomView(seed=0)(features)[:, 0].long().bincount(minlength=4)
    assert counts.min() > 80
    assert torch.equal(first_view(features), torch.zeros(500, 2))
