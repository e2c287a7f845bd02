"""Batched transforms against torchvision's v2, image by image."""

from functools import partial
from itertools import permutations

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from dmlkit.transforms import (
    ColourJitter,
    RandomCropFlip,
    RandomPerspective,
    RandomResizedCropFlip,
    RandomView,
    centre_crop,
    change_brightness,
    change_contrast,
    change_saturation,
    corners_of,
    first_view,
    jitter_colours,
    perspective,
    resample,
    resize_matrix,
    shift_hue,
)

# Virtual images, 48 px on the shorter side: landscape, portrait, extreme both ways, square, uneven.
SIZES = torch.tensor([[48, 72], [64, 48], [48, 240], [240, 48], [48, 48], [48, 49]])
# Sides of stored images: of the shorter side of these, and with samples to spare.
STORES = pytest.mark.parametrize("stored", [48, 64])


def noise(count, height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def smooth(count, height, width):
    """Images with three light and dark spots a side: less than 15 of 255 from pixel to pixel."""
    spots = noise(count, 3, 3).float()
    images = interpolate(spots, (height, width), mode="bicubic", align_corners=True)
    return images.clamp(0, 255).byte()


def coordinates(count, height, width):
    """Images whose red value is the row and whose green value is the column."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    planes = [plane.expand(height, width) for plane in (rows, columns, torch.tensor(0))]
    return torch.stack(planes).byte().expand(count, -1, -1, -1)


def assert_same_distribution(ours, theirs, name=""):
    """Compare the shares of values up to each value; 0.05 is the 0.1 % level of 4000 and 4000."""
    ours, theirs = (torch.as_tensor(values).double().sort().values for values in (ours, theirs))
    values = torch.cat([ours, theirs])
    shares = [
        torch.searchsorted(sample, values, right=True) / len(sample) for sample in (ours, theirs)
    ]
    assert (shares[0] - shares[1]).abs().max() < 0.05, name


def their_boxes(transform, height, width, names=("top", "left", "height", "width")):
    image = torch.empty(3, height, width)
    boxes = [transform.make_params([image]) for _ in range(4000)]
    return {name: [box[name] for box in boxes] for name in names}


def in_the_virtual_image(image, size, crop):
    """What torchvision does: the photograph in its own shape first, then ``crop``; in [0, 1]."""
    return crop(reference.resize(image.float() / 255, size.tolist()))


# Resized crops


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


def test_a_source_pixel_counts_if_any_of_it_lies_in_the_crop():
    # Two pixels from the middle of the first to the middle of the third, onto one.
    weights = resize_matrix(torch.tensor([0.5]), torch.tensor([2.0]), 1, 5)
    assert torch.allclose(weights[0, 0], torch.tensor([0.25, 0.5, 0.25, 0.0, 0.0]))


def test_rounding_of_a_whole_number_lets_no_further_pixel_in():
    exact = resize_matrix(torch.tensor([4]), torch.tensor([4]), 16, 12)
    rounded = resize_matrix(torch.tensor([4 - 1e-5]), torch.tensor([4 + 2e-5]), 16, 12)
    assert torch.allclose(rounded, exact, atol=1e-4)
    assert torch.equal(rounded == 0, exact == 0)


def test_drawn_boxes_have_torchvisions_distribution():
    torch.manual_seed(0)
    ours = RandomResizedCropFlip(8, seed=0).draw_boxes(4000, 60, 90)
    theirs = their_boxes(v2.RandomResizedCrop(8, scale=(0.16, 1.0)), 60, 90)
    for values, (name, expected) in zip(ours, theirs.items(), strict=True):
        assert_same_distribution(values, expected, name)


def test_boxes_of_a_mixed_batch_have_the_distribution_of_each_images_own_size():
    torch.manual_seed(0)
    sizes = torch.tensor([[60, 90], [200, 40]])  # many boxes do not fit into the second
    height, width = sizes.repeat(4000, 1).unbind(1)
    ranges = {"scale": (0.05, 0.7), "ratio": (0.2, 3.0)}
    ours = RandomResizedCropFlip(8, seed=0, **ranges).draw_boxes(8000, height, width)
    for index, size in enumerate(sizes.tolist()):
        theirs = their_boxes(v2.RandomResizedCrop(8, **ranges), *size)
        for values, (name, expected) in zip(ours, theirs.items(), strict=True):
            assert_same_distribution(values[index::2], expected, f"{name} in {size}")


def test_boxes_stay_inside_the_image_and_fall_back_to_its_centre():
    # No box of at least the whole area with these ratios fits a flat or a tall image.
    transform = RandomResizedCropFlip(8, seed=0, scale=(1.0, 1.0))
    top, left, height, width = transform.draw_boxes(50, 20, 80)
    assert set(height.tolist()) == {20} and set(width.tolist()) == {27}
    assert set(left.tolist()) == {26} and set(top.tolist()) == {0}
    boxes = transform.draw_boxes(2, torch.tensor([20, 80]), torch.tensor([80, 20]))
    assert [values.tolist() for values in boxes] == [[0, 26], [26, 0], [20, 27], [27, 20]]


@pytest.mark.parametrize("image_size", [24, 80], ids=["shrinking", "enlarging"])
def test_resized_crops_are_torchvisions_of_the_stored_bytes(image_size):
    images = noise(20, 60, 50)
    ours = RandomResizedCropFlip(image_size, seed=3)(images)
    twin = RandomResizedCropFlip(image_size, seed=3)
    boxes = torch.stack(twin.draw_boxes(20, 60, 50), dim=1).tolist()
    mirrored = torch.rand(20, generator=twin.generator) < 0.5
    assert 0 < mirrored.sum() < 20
    for image, box, flip, result in zip(images, boxes, mirrored, ours, strict=True):
        expected = reference.resized_crop(image, *box, [image_size, image_size])
        expected = expected.flip(-1) if flip else expected
        assert (result - expected / 255).abs().max() <= 2 / 255


def test_a_certain_flip_mirrors_each_image():
    images = noise(3, 16, 20)
    # No square holds the whole of a flat image, so the crop falls back to the central square.
    square = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain = RandomResizedCropFlip(16, seed=0, flip=0.0, **square)(images)
    mirrored = RandomResizedCropFlip(16, seed=0, flip=1.0, **square)(images)
    assert torch.allclose(plain, images[..., 2:18].float() / 255, atol=1e-6)
    assert torch.allclose(mirrored, plain.flip(-1), atol=1e-6)


# Photographs that the store distorts


@STORES
@pytest.mark.parametrize("image_size", [32, 64], ids=["shrinking", "enlarging"])
def test_resized_crops_follow_the_photographs_own_shape(image_size, stored):
    images, sizes = smooth(60, stored, stored), SIZES.repeat(10, 1)
    ours = RandomResizedCropFlip(image_size, seed=0, flip=0.0)(images, sizes)
    boxes = RandomResizedCropFlip(image_size, seed=0).draw_boxes(60, *sizes.unbind(1))
    boxes = torch.stack(boxes, dim=1).tolist()
    for image, size, result, box in zip(images, sizes, ours, boxes, strict=True):

        def crop(virtual_image, box=box):
            return reference.resized_crop(virtual_image, *box, [image_size, image_size])

        difference = (result - in_the_virtual_image(image, size, crop)).abs()
        # We resize once and torchvision twice, blurring more; and its crop may end within a stored
        # pixel, of which ours sees the whole. Both need images that change to make a difference.
        assert difference[:, 3:-3, 3:-3].max() <= 1.5 / 255
        assert difference.max() <= 6 / 255


@STORES
def test_random_crops_follow_the_photographs_own_shape(stored):
    images, sizes = noise(60, stored, stored), SIZES.repeat(10, 1)
    ours = RandomCropFlip(40, seed=0, flip=0.0)(images, sizes)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand((60, 2), generator=generator, dtype=torch.float64)
    corners = (drawn * (sizes - 40 + 1)).long()
    for image, size, corner, result in zip(images, sizes, corners.tolist(), ours, strict=True):

        def crop(virtual_image, corner=corner):
            return reference.crop(virtual_image, *corner, 40, 40)

        assert torch.allclose(result, in_the_virtual_image(image, size, crop), atol=1e-5)


def test_random_crops_reach_all_of_a_long_photograph_evenly():
    # Columns of the store tell where a crop of the 5 times as wide virtual image begins.
    images, sizes = coordinates(4000, 12, 12), torch.tensor([[12, 60]]).expand(4000, 2)
    results = RandomCropFlip(12, seed=0, flip=0.0)(images, sizes) * 255
    # Pixel 5 of a crop shows the stored column (left + 5.5) / 5 - 0.5.
    left = 5 * (results[:, 1, 0, 5] + 0.5) - 5.5
    torch.manual_seed(0)
    assert_same_distribution(left, torch.randint(60 - 12 + 1, (4000,)))


@STORES
@pytest.mark.parametrize("image_size", [48, 41], ids=["whole short side", "odd margins"])
def test_centre_crops_follow_the_photographs_own_shape(image_size, stored):
    images = noise(len(SIZES), stored, stored)
    ours = centre_crop(images, SIZES, image_size=image_size)
    for image, size, result in zip(images, SIZES, ours, strict=True):
        expected = in_the_virtual_image(image, size, v2.CenterCrop(image_size))
        assert torch.allclose(result, expected, atol=1e-5)


@STORES
def test_a_stored_photograph_is_cropped_as_torchvision_crops_the_photograph_itself(stored):
    photograph = smooth(1, 300, 450)
    ours = centre_crop(
        reference.resize(photograph, [stored, stored]), torch.tensor([[48, 72]]), image_size=40
    )
    theirs = v2.Compose([v2.Resize(48), v2.CenterCrop(40)])(photograph) / 255
    assert (ours - theirs).abs().max() <= 2 / 255


def test_square_photographs_are_cropped_as_if_no_size_were_given():
    images, sizes = noise(20, 48, 48), torch.tensor([[48, 48]]).expand(20, 2)
    for transform in (RandomResizedCropFlip, RandomCropFlip):
        plain, sized = transform(40, seed=0)(images), transform(40, seed=0)(images, sizes)
        assert torch.allclose(plain, sized, atol=1e-6)
    plain, sized = (centre_crop(images, given, image_size=40) for given in (None, sizes))
    assert torch.allclose(plain, sized, atol=1e-6)


def test_flips_also_mirror_distorted_photographs():
    images = noise(len(SIZES), 48, 48)
    for transform in (RandomResizedCropFlip, RandomCropFlip):
        plain, mirrored = (transform(40, seed=0, flip=p)(images, SIZES) for p in (0.0, 1.0))
        assert torch.allclose(mirrored, plain.flip(-1), atol=1e-6)


@pytest.mark.parametrize(
    "sizes",
    [torch.ones(3, 2).long(), torch.ones(2, 3).long(), torch.tensor([[9, 9], [0, 9]])]
    + [torch.full((2, 2), 9.5)],
    ids=["too many", "three sides", "nothing", "fractions"],
)
def test_sizes_that_are_no_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match=r"sizes.*two whole numbers above 0"):
        centre_crop(noise(2, 8, 8), sizes, image_size=4)


# Crops without resizing


def test_random_crops_are_exact_slices_anywhere_in_the_image_and_half_of_them_mirrored():
    results = RandomCropFlip(5, seed=0)(coordinates(4000, 12, 9)).mul(255).round().long()
    top, left = results[:, 0].amin(dim=(1, 2)), results[:, 1].amin(dim=(1, 2))
    mirrored = results[:, 1, 0, 0] > results[:, 1, 0, 1]
    for result, row, column, flip in zip(results, top, left, mirrored, strict=True):
        rows, columns = torch.arange(5)[:, None] + row, torch.arange(5) + column
        assert torch.equal(result[0], rows.expand(5, 5))
        assert torch.equal(result[1], (columns.flip(0) if flip else columns).expand(5, 5))
    assert abs(mirrored.float().mean() - 0.5) < 0.03
    torch.manual_seed(0)
    theirs = their_boxes(v2.RandomCrop(5), 12, 9, names=("top", "left"))
    assert_same_distribution(top, theirs["top"], "top")
    assert_same_distribution(left, theirs["left"], "left")


def test_a_random_crop_of_the_whole_image_is_the_image():
    images = noise(3, 16, 16)
    assert torch.equal(RandomCropFlip(16, seed=0, flip=0.0)(images), images / 255)


def test_centre_crop_takes_the_middle_and_scales_to_one():
    images = torch.zeros(1, 3, 6, 6, dtype=torch.uint8)
    images[..., 2:4, 2:4] = 255
    assert torch.equal(centre_crop(images, image_size=2), torch.ones(1, 3, 2, 2))


def test_centre_crop_is_torchvisions_slice_also_where_margins_are_odd():
    for height, width in ((53, 48), (55, 57), (40, 41)):
        images = noise(2, height, width)
        theirs = reference.center_crop(images, [40, 40])
        assert torch.equal(centre_crop(images, image_size=40), theirs.float() / 255)


@pytest.mark.parametrize(
    "crop",
    [partial(centre_crop, image_size=8), RandomCropFlip(8, seed=0)],
    ids=["centre", "random"],
)
def test_crops_at_their_own_scale_refuse_to_enlarge(crop):
    with pytest.raises(ValueError, match="set CACHE_SIZE to at least"):
        crop(noise(1, 4, 20))
    with pytest.raises(ValueError, match="set CACHE_SIZE to at least"):
        crop(noise(1, 4, 4), torch.tensor([[10, 12]]))
    with pytest.raises(ValueError, match="shorter side of 6 px; set SHORT_SIDE to at least"):
        crop(noise(2, 9, 9), torch.tensor([[10, 8], [10, 6]]))


# Colours

THEIR_CHANGES = (
    reference.adjust_brightness,
    reference.adjust_contrast,
    reference.adjust_saturation,
    reference.adjust_hue,
)


@pytest.mark.parametrize(
    ("ours", "theirs", "amounts"),
    [
        (change_brightness, reference.adjust_brightness, [0.0, 0.6, 1.0, 1.4]),
        (change_contrast, reference.adjust_contrast, [0.0, 0.6, 1.0, 1.4]),
        (change_saturation, reference.adjust_saturation, [0.0, 0.6, 1.0, 1.4]),
        (shift_hue, reference.adjust_hue, [-0.5, -0.1, 0.3, 0.5]),
    ],
    ids=["brightness", "contrast", "saturation", "hue"],
)
def test_each_change_of_colour_is_torchvisions_of_the_bytes(ours, theirs, amounts):
    images = noise(4, 20, 24)
    images[:, :, :2] = torch.tensor([0, 255])[:, None]  # black and white, which have no hue
    images[:, 1, 2:4] = images[:, 0, 2:4]  # two channels share the maximum or the minimum
    results = ours(images / 255, torch.tensor(amounts)[:, None, None, None])
    for image, amount, result in zip(images, amounts, results, strict=True):
        assert (result - theirs(image, amount) / 255).abs().max() <= 2 / 255
        assert torch.allclose(result, theirs(image / 255, amount), atol=1e-5)


def test_colours_are_jittered_by_each_images_factors_in_each_images_order():
    images, orders = noise(24, 16, 16) / 255, torch.tensor(list(permutations(range(4))))
    factors, _ = ColourJitter(seed=0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5).draw(
        24
    )
    results = jitter_colours(images, factors, orders)
    # Compared as floats: torchvision truncates bytes after each change, and the next enlarges that.
    for image, amounts, order, result in zip(images, factors, orders, results, strict=True):
        for index in order.tolist():
            image = THEIR_CHANGES[index](image, amounts[index].item())
        assert torch.allclose(result, image, atol=1e-5)


def test_jitter_draws_torchvisions_factors():
    torch.manual_seed(0)
    ranges = {"brightness": 0.4, "contrast": 1.5, "saturation": 0.7, "hue": 0.1}
    factors, _ = ColourJitter(seed=0, **ranges).draw(4000)
    theirs = [v2.ColorJitter(**ranges).make_params([]) for _ in range(4000)]
    for index, name in enumerate(ranges):
        expected = [drawn[f"{name}_factor"] for drawn in theirs]
        assert_same_distribution(factors[:, index], expected, name)


def test_jitter_draws_every_order_equally_often():
    _, orders = ColourJitter(seed=0).draw(24 * 200)
    _, counts = orders.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 150 and counts.max() < 250


def test_jitter_changes_only_what_it_is_asked_to():
    images = noise(20, 8, 8) / 255
    assert torch.equal(ColourJitter(seed=0)(images), images)
    greyed = ColourJitter(seed=0, hue=0.5)(images)
    assert torch.allclose(greyed.amax(dim=1), images.amax(dim=1), atol=1e-6)
    assert torch.allclose(greyed.amin(dim=1), images.amin(dim=1), atol=1e-6)
    assert not torch.allclose(greyed, images, atol=0.1)


def test_jitter_leaves_its_input_as_it_was():
    images = noise(4, 8, 8) / 255
    before = images.clone()
    ColourJitter(seed=0, brightness=0.5, contrast=0.5, saturation=0.5, hue=0.5)(images)
    assert torch.equal(images, before)


# Perspective

POINTS = {  # where the corners of an image 40 pixels wide and 30 high go
    "nowhere": [[0, 0], [39, 0], [39, 29], [0, 29]],
    "one corner": [[12, 9], [39, 0], [39, 29], [0, 29]],
    "all inwards": [[9, 1], [30, 8], [38, 20], [3, 25]],
    "outwards": [[-6, -2], [45, -9], [39, 29], [0, 35]],
}


def test_perspective_moves_each_image_as_torchvision_does():
    images, ends = noise(len(POINTS), 30, 40), torch.tensor(list(POINTS.values()))
    starts = corners_of(30, 40).expand(len(ends), 4, 2).clone()
    starts[2, 0] = torch.tensor([5, 4])  # not only corners can be told where to go
    results = perspective(images / 255, starts, ends)
    for image, start, end, result in zip(images, starts, ends, results, strict=True):
        arguments = {"startpoints": start.tolist(), "endpoints": end.tolist(), "fill": 0}
        assert (result - reference.perspective(image, **arguments) / 255).abs().max() <= 2 / 255
        assert torch.allclose(result, reference.perspective(image / 255, **arguments), atol=1e-4)
    assert torch.allclose(results[0], images[0] / 255, atol=1e-4)


@pytest.mark.parametrize("distortion_scale", [0.33, 1.0])
def test_corners_move_as_in_torchvision(distortion_scale, monkeypatch):
    torch.manual_seed(0)
    # Its transform returns the solved system; this lets it return the corners.
    monkeypatch.setattr(
        "torchvision.transforms.v2._geometry._get_perspective_coeffs", lambda start, end: end
    )
    transform, image = v2.RandomPerspective(distortion_scale), torch.empty(3, 31, 46)
    drawn = [transform.make_params([image])["coefficients"] for _ in range(4000)]
    theirs = torch.tensor(drawn).flatten(1)
    ours = RandomPerspective(seed=0).draw_corners(4000, 31, 46, distortion_scale).flatten(1)
    assert torch.equal(ours.amin(dim=0), theirs.amin(dim=0))
    assert torch.equal(ours.amax(dim=0), theirs.amax(dim=0))
    for index in range(8):
        assert_same_distribution(ours[:, index], theirs[:, index], f"coordinate {index}")
    assert ours.double().T.corrcoef().fill_diagonal_(0).abs().max() < 0.06  # all independent


def test_a_share_p_of_the_images_is_moved_by_the_transforms_own_corners():
    images = noise(1, 12, 12).expand(1000, -1, -1, -1) / 255
    results = RandomPerspective(seed=0, distortion_scale=0.8, p=0.3)(images)
    moved = (results != images).flatten(1).any(dim=1)
    assert abs(moved.float().mean() - 0.3) < 0.05
    ends = RandomPerspective(seed=0).draw_corners(1000, 12, 12, 0.8)
    expected = perspective(images, corners_of(12, 12).expand(1000, 4, 2), ends)
    assert torch.allclose(results[moved], expected[moved], atol=1e-4)
    assert torch.equal(RandomPerspective(seed=0, p=0.0)(images), images)


def test_corners_in_one_line_give_some_picture_and_no_error():
    images = torch.ones(500, 3, 8, 8)
    results = RandomPerspective(seed=0, distortion_scale=1.0, p=1.0)(images)
    assert results.isfinite().all()
    line = torch.tensor([[[0, 0], [3, 3], [5, 5], [0, 7]]])
    assert perspective(images[:1], corners_of(8, 8)[None], line).isfinite().all()


# All of them


def of_bytes(transform):
    return lambda images: transform(images / 255)


TRANSFORMS = {
    "resized crop": lambda seed: RandomResizedCropFlip(10, seed=seed),
    "crop": lambda seed: RandomCropFlip(10, seed=seed),
    "jitter": lambda seed: of_bytes(ColourJitter(seed=seed, contrast=0.5, saturation=0.5)),
    "perspective": lambda seed: of_bytes(RandomPerspective(seed=seed, p=1.0)),
}


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_the_same_seed_gives_the_same_results_and_another_seed_others(make):
    images = noise(4, 20, 20)
    one, same, other = (make(seed) for seed in (1, 1, 2))
    first, second = one(images), one(images)
    assert torch.equal(first, same(images)) and torch.equal(second, same(images))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other(images))


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_results_do_not_depend_on_any_other_random_numbers(make):
    torch.manual_seed(0)
    first = make(1)(noise(4, 20, 20))
    torch.manual_seed(1)
    assert torch.equal(first, make(1)(noise(4, 20, 20)))


@pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)
def test_each_image_of_a_batch_gets_its_own_parameters(make):
    images = noise(1, 20, 20).expand(4, -1, -1, -1)
    results = make(0)(images)
    assert len({result.numpy().tobytes() for result in results}) == 4


def test_images_may_lie_on_another_device_than_the_random_numbers():
    # The meta device computes shapes only, but refuses to mix with others as a GPU does.
    images = noise(6, 48, 48).to("meta")
    jitter = ColourJitter(seed=0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    move = RandomPerspective(seed=0, p=1.0)
    for crop in (RandomResizedCropFlip(40, seed=0), RandomCropFlip(40, seed=0)):
        for sizes in (None, SIZES):
            assert jitter(move(crop(images, sizes))).shape == (6, 3, 40, 40)
    assert centre_crop(images, SIZES, image_size=40).device.type == "meta"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCropFlip(8, seed=0, scale=(0.0, 1.0)), r"CROP_SCALE=\[0.0, 1.0\]"),
        (lambda: RandomResizedCropFlip(8, seed=0, scale=(0.8, 0.2)), r"CROP_SCALE=\[0.8, 0.2\]"),
        (lambda: RandomResizedCropFlip(8, seed=0, scale=(0.2, 20)), r"CROP_SCALE=\[0.2, 20\]"),
        (lambda: RandomResizedCropFlip(8, seed=0, ratio=(2, 1)), r"ratio=\[2, 1\].*use e.g."),
        (lambda: RandomResizedCropFlip(8, seed=0, flip=1.5), "flip=1.5.*from 0 to 1"),
        (lambda: RandomCropFlip(8, seed=0, flip=-0.5), "flip=-0.5.*from 0 to 1"),
        (lambda: ColourJitter(seed=0, brightness=-1), "brightness=-1.*use 0 or more"),
        (lambda: ColourJitter(seed=0, contrast=float("nan")), "contrast=nan.*use 0 or more"),
        (lambda: ColourJitter(seed=0, saturation=-0.1), "saturation=-0.1.*use 0 or more"),
        (lambda: ColourJitter(seed=0, hue=0.6), "hue=0.6.*use 0 to 0.5"),
        (lambda: ColourJitter(seed=0, hue=-0.1), "hue=-0.1.*use 0 to 0.5"),
        (lambda: RandomPerspective(seed=0, distortion_scale=2), "distortion_scale=2.*from 0 to 1"),
        (lambda: RandomPerspective(seed=0, p=-1), "p=-1.*from 0 to 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_parameters_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Cached features


def test_random_view_takes_all_views_and_first_view_the_plain_one():
    features = torch.arange(4).half()[None, :, None].expand(500, 4, 2)
    counts = RandomView(seed=0)(features)[:, 0].long().bincount(minlength=4)
    assert counts.min() > 80
    assert torch.equal(first_view(features), torch.zeros(500, 2))


def test_views_ignore_the_sizes_of_photographs():
    features, sizes = torch.randn(6, 4, 2), SIZES
    assert torch.equal(RandomView(seed=0)(features, sizes), RandomView(seed=0)(features))
    assert torch.equal(first_view(features, sizes), first_view(features))
