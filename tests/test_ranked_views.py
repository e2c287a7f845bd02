"""Ranked views against torchvision's v2, their strengths and streams, and their cached features."""

import inspect
import itertools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from dmlkit.datasets import ImageSet
from dmlkit.datasets.drawings.aviary import draw_aviary
from dmlkit.models import make_trunk
from dmlkit.ranked_views import (
    FAMILIES,
    CachedRankedViews,
    RankedViews,
    cached_ranked_features,
    strengths,
)
from dmlkit.seeding import derive_seed
from dmlkit.transforms import (
    centre_crop,
    change_brightness,
    change_contrast,
    change_saturation,
    corners_of,
)

SIDE = 20
FOUR = strengths(4)


def noise(count=6, side=SIDE):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, side, side, generator=generator)


def build(side=SIDE, seed=0, strengths=FOUR, **settings):
    return RankedViews(side, strengths=strengths, seed=seed, **settings)


def test_strengths_are_hyperbolic_tangents():
    assert strengths(4) == pytest.approx([0.197, 0.380, 0.537, 0.664], abs=5e-4)
    assert strengths(2, 0.5) == pytest.approx([math.tanh(0.5), math.tanh(1.0)])


# Each family


def test_crops_are_torchvisions_with_antialiasing_of_boxes_of_the_share_left():
    images = noise()
    views = build(families=["crop"])(images)
    boxes = [crop.draw_boxes(len(images), SIDE, SIDE) for crop in build().crops]
    for n, c in enumerate(FOUR):
        for image, box, view in zip(images, zip(*boxes[n], strict=True), views[:, n], strict=True):
            top, left, height, width = (int(side) for side in box)
            assert height * width == pytest.approx((1 - c) * SIDE**2, abs=SIDE)  # whole pixels
            assert 0.65 < width / height < 1.5
            expected = reference.resized_crop(image, top, left, height, width, [SIDE, SIDE])
            assert torch.allclose(view, expected, atol=1e-5)


def test_perspectives_are_torchvisions_of_corners_as_far_as_the_strength():
    images = noise()
    views = build(families=["perspective"])(images)
    start, draws = corners_of(SIDE, SIDE), build().perspectives
    for n, c in enumerate(FOUR):
        ends = draws.draw_corners(len(images), SIDE, SIDE, c)
        assert (ends - start).abs().max() == int(c * SIDE / 2)
        for image, end, view in zip(images, ends, views[:, n], strict=True):
            expected = reference.perspective(image, start.tolist(), end.tolist(), fill=0)
            assert torch.allclose(view, expected, atol=1e-4)
    assert (views == 0).any()  # black where the image does not reach


def test_a_grey_image_gets_brighter_or_darker_by_half_the_strength_exactly():
    images = torch.full((40, 3, 8, 8), 0.5)
    views = build(side=8, families=["colour"])(images)
    factors = views / 0.5  # a single grey has neither contrast nor saturation
    change = torch.tensor(FOUR)[:, None, None, None] / 2
    # The weights of red, green and blue in grey add up to 0.9999.
    assert torch.allclose((factors - 1).abs(), change.expand_as(factors), atol=2e-4)
    brighter = (factors > 1).float().mean(dim=(0, 2, 3, 4))
    assert brighter.min() > 0.25 and brighter.max() < 0.75


def test_colours_change_by_every_combination_of_signs_in_every_order():
    # Clipping makes the order matter.
    image, c = noise(1, side=8), 0.9
    changes = (change_brightness, change_contrast, change_saturation)
    expected = []
    for signs in itertools.product((-1, 1), repeat=3):
        for order in itertools.permutations(range(3)):
            expected.append(image)
            for index in order:
                factor = torch.full((1, 1, 1, 1), 1 + signs[index] * c / 2)
                expected[-1] = changes[index](expected[-1], factor)
    expected = torch.cat(expected)  # (48, 3, 8, 8)

    views = build(side=8, strengths=[c], families=["colour"])(image.expand(2000, -1, -1, -1))

    distance = torch.cdist(views.flatten(1), expected.flatten(1), p=math.inf)
    assert distance.amin(dim=1).max() < 1e-5
    distinct = torch.cdist(expected.flatten(1), expected.flatten(1), p=math.inf) < 1e-3
    # Orders that come to the same share what they get.
    share = (distance < 1e-3).float().mean(dim=0) / distinct.float().sum(dim=1)
    assert distinct[-6:].sum() == 6  # where everything grows, no two orders agree
    assert (share - 1 / 48).abs().max() < 0.015


def test_without_families_and_without_strength_views_are_the_images():
    images = noise()
    expected = images[:, None].expand(-1, 4, -1, -1, -1)
    assert torch.equal(build(families=[])(images), expected)
    assert torch.allclose(build(strengths=[0.0] * 4)(images), expected, atol=1e-4)


def test_images_are_cropped_then_turned_then_recoloured_and_each_draws_for_itself():
    images = noise()
    one_by_one = images
    for family in FAMILIES:
        one_by_one = build(strengths=[0.5], families=[family])(one_by_one)[:, 0]
    together = build(strengths=[0.5], families=FAMILIES[::-1])(images)[:, 0]
    assert torch.allclose(together, one_by_one, atol=1e-5)
    assert not torch.allclose(together, images, atol=0.1)


# All of them


def test_views_are_float32_from_0_to_1_and_follow_their_images():
    views = build()(noise().half())
    assert views.shape == (6, 4, 3, SIDE, SIDE)
    assert views.dtype == torch.float32
    assert views.min() >= 0 and views.max() <= 1
    white = build(side=31, families=["perspective"])(torch.ones(6, 3, 31, 31))
    assert white.max() == 1  # no rounding beyond it
    levels = torch.tensor([0.1, 0.9])[:, None, None, None].expand(2, 3, SIDE, SIDE)
    dark, bright = build(families=["crop", "colour"])(levels)
    assert dark.max() < 0.2 and bright.min() > 0.5


def test_the_same_seed_gives_the_same_views_and_another_seed_others():
    images, one, same, other = noise(), build(seed=1), build(seed=1), build(seed=2)
    first, second = one(images), one(images)
    torch.manual_seed(0)
    assert torch.equal(first, same(images)) and torch.equal(second, same(images))
    assert not torch.equal(first, second)
    assert not torch.equal(first, other(images))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_image_and_each_view_gets_its_own_parameters(family):
    images = noise(1).expand(3, -1, -1, -1)
    views = build(strengths=[0.5, 0.5], families=[family])(images)
    # Of colours there are but eight combinations of signs and six orders.
    assert len({view.numpy().tobytes() for view in views.flatten(0, 1)}) >= 5


@pytest.mark.parametrize("families", [FAMILIES, *([f] for f in FAMILIES)], ids=str)
def test_drawn_images_and_their_views_differ_the_more_the_stronger_they_are(families):
    images = torch.from_numpy(draw_aviary(8, 6, seed=0).images) / 255
    views = build(side=48, families=families)(images)
    distance = (views - images[:, None]).square().mean(dim=(0, 2, 3, 4))
    assert (distance.diff() > 0.1 * distance[0]).all()


def test_shuffled_views_are_the_same_in_an_order_of_each_image():
    images, plain, shuffled = noise(24), build(), build(shuffled=True)
    for _ in range(2):
        views, mixed = plain(images), shuffled(images)
        is_same = (views[:, None] == mixed[:, :, None]).flatten(3).all(dim=3)  # (M, N, N)
        assert (is_same.sum(dim=1) == 1).all() and (is_same.sum(dim=2) == 1).all()
        orders = {tuple(order) for order in is_same.int().argmax(dim=2).tolist()}
        assert len(orders) > 8  # of 24


def test_autocast_does_not_coarsen_the_views_and_nothing_records_a_gradient():
    images = noise().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = build()(images)
    assert torch.equal(inside, build()(images))
    assert not inside.requires_grad


def test_images_may_lie_on_another_device_than_the_random_numbers(monkeypatch):
    # The meta device computes shapes only, but refuses to mix with others as a GPU does. It alone
    # has no autocast.
    monkeypatch.setattr("torch.autocast", lambda device, enabled: nullcontext())
    views = build(shuffled=True)(noise().to("meta"))
    assert views.shape == (6, 4, 3, SIDE, SIDE)
    assert views.device.type == "meta"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strengths(0), "0 views of coefficient 0.2"),
        (lambda: strengths(4, 0.0), "4 views of coefficient 0.0"),
        (lambda: build(strengths=[]), r"strengths=\[\] are not one or more numbers"),
        (lambda: build(strengths=[0.5, 1.0]), r"strengths=\[0.5, 1.0\] are not"),
        (lambda: build(strengths=[-0.1]), r"strengths=\[-0.1\] are not"),
        (lambda: build(families=["crop", "hue"]), r"families \['hue'\] are unknown; choose from"),
        (lambda: build()(noise(side=16)), r"images \(6, 3, 16, 16\) .* \(M, 3, 20, 20\)"),
        (lambda: build()(noise().byte()), "torch.uint8 should be"),
        (lambda: compute(None, draws=0), "draws=0 leave no views"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_views_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Cached features

COUNT = 9  # one more than two batches


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The folder of the cached features, away from the project's own."""
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path))
    return tmp_path / "features"


@pytest.fixture
def watched():
    """A trunk, and the number of images in each of its calls."""
    torch.manual_seed(0)
    trunk, calls = make_trunk("small_convnet"), []
    trunk.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    return SimpleNamespace(trunk=trunk, calls=calls)


def photographs(seed=0, sizes=None):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (COUNT, 3, 18, 18), dtype=torch.uint8, generator=generator)
    labels, index = torch.arange(4), torch.arange(4)  # a part of the store
    return ImageSet(images, labels, tuple("abcd"), f"{seed:064x}", index, sizes=sizes)


def compute(trunk, image_set=None, **changed):
    settings = {"strengths": (0.2, 0.5, 0.6), "draws": 2, "image_size": 16, "batch_size": 4}
    settings |= {"device": torch.device("cpu")} | changed
    return cached_ranked_features(trunk, image_set or photographs(), **settings)


@pytest.mark.parametrize("sizes", [None, torch.tensor([[16, 24]] * COUNT)], ids=["", "with sizes"])
@torch.no_grad()
def test_features_are_the_trunks_of_the_views_of_the_plain_image(sizes, watched, cache):
    image_set = photographs(sizes=sizes)
    features = compute(watched.trunk.train(), image_set)
    assert features.shape == (COUNT, 2, 3, 32)
    assert features.dtype == torch.float16
    assert watched.calls == [12, 12, 12, 12, 3, 3]

    views = build(side=16, strengths=(0.2, 0.5, 0.6), seed=derive_seed(0, "cached ranked views"))
    for rows in torch.arange(COUNT).split(4):
        batch_sizes = None if sizes is None else sizes[rows]
        plain = centre_crop(image_set.images[rows], batch_sizes, image_size=16)
        for draw in range(2):
            made = views(plain)
            for n in range(3):
                expected = watched.trunk.eval()(made[:, n])
                ours = features[rows, draw, n].float()
                torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_a_second_call_reads_the_cache_and_leaves_the_trunk_alone(watched, cache):
    first = compute(watched.trunk)
    assert sum(watched.calls) == 2 * 3 * COUNT
    again = compute(watched.trunk, families=FAMILIES[::-1])  # the same families
    assert sum(watched.calls) == 2 * 3 * COUNT
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    "changed",
    [
        {"strengths": (0.2, 0.5, 0.7)},
        {"draws": 3},
        {"image_size": 17},
        {"families": ["crop"]},
        {"batch_size": 5},
        {"image_set": photographs(seed=1)},
        {"image_set": photographs(sizes=torch.tensor([[16, 24]] * COUNT))},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_settings_and_other_images_have_another_cache(changed, watched, cache):
    compute(watched.trunk)
    compute(watched.trunk, **changed)
    assert len(list(cache.glob("*/features.npy"))) == 2


def change_a_weight(trunk):
    with torch.no_grad():
        trunk.layers[0].weight[0, 0, 0, 0] += 0.5


def change_a_running_statistic(trunk):
    trunk.layers[1].running_mean[0] += 0.5


def change_the_normalisation(trunk):
    trunk.mean += 0.1


def change_the_pooling(trunk):
    trunk.pooling = "max"


def change_the_channels(trunk):
    trunk.reverse_channels = True


@pytest.mark.parametrize(
    "change",
    [
        change_a_weight,
        change_a_running_statistic,
        change_the_normalisation,
        change_the_pooling,
        change_the_channels,
    ],
    ids=lambda f: f.__name__,
)
def test_another_trunk_has_another_cache(change, watched, cache):
    compute(watched.trunk)
    change(watched.trunk)
    compute(watched.trunk)
    assert len(list(cache.glob("*/features.npy"))) == 2


@pytest.mark.parametrize(
    "changed",
    [
        "RankedViews",
        "cached_ranked_features",
        "dmlkit.transforms",
        "dmlkit.models.trunks",
        "SmallConvNet",
        "decoder",
    ],
)
def test_other_code_has_another_cache(changed, watched, cache, monkeypatch):
    def source(code):
        return "other code" if code.__name__ == changed else inspect.getsource(code)

    compute(watched.trunk)
    monkeypatch.setattr("dmlkit.ranked_views.inspect", SimpleNamespace(getsource=source))
    if changed == "decoder":
        monkeypatch.setattr("dmlkit.ranked_views.DECODER", "another")
    compute(watched.trunk)
    assert len(list(cache.glob("*/features.npy"))) == 2


# Picks from the cache


def stored(images=50, draws=3, views=4):
    """Features that say which image, draw and view they are of."""
    axes = (torch.arange(size) for size in (images, draws, views))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).half()


def test_picks_are_of_the_image_of_all_draws_and_in_the_order_of_strength():
    picked = CachedRankedViews(3, seed=0)(stored())
    assert picked.shape == (50, 3, 3) and picked.dtype == torch.float32
    assert (picked[..., 0] == torch.arange(50)[:, None]).all()
    assert set(picked[..., 1].unique().tolist()) == {0, 1, 2}
    assert len({tuple(draws) for draws in picked[..., 1].tolist()}) > 9  # a draw of its own each
    assert (picked[..., 2] == torch.arange(3)).all()
    assert torch.equal(picked, CachedRankedViews(3, seed=0)(stored()))
    assert not torch.equal(picked, CachedRankedViews(3, seed=1)(stored()))


def test_shuffled_picks_are_every_view_once_in_an_order_of_each_image():
    picked = CachedRankedViews(4, seed=0, shuffled=True)(stored())
    orders = picked[..., 2].tolist()
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len({tuple(order) for order in orders}) > 12


def test_shuffled_picks_are_the_same_picks_in_another_order():
    plain, mixed = (CachedRankedViews(4, seed=0, shuffled=s)(stored()) for s in (False, True))
    for one, other in zip(plain.tolist(), mixed.tolist(), strict=True):
        assert sorted(one) == sorted(other)


def test_more_views_than_are_kept_are_refused():
    with pytest.raises(ValueError, match="5 views are asked for, 4 are kept"):
        CachedRankedViews(5, seed=0)(stored())
