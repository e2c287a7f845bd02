"""Cached features are the trunk's, computed once per trunk, data set and setting."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from dmlkit.datasets import ImageSet, split_classes
from dmlkit.features import CachedTrunk, cache_views, cached_features
from dmlkit.models import make_trunk
from dmlkit.transforms import centre_crop, first_view

CPU = torch.device("cpu")
COUNT = 65  # one more than a batch
# The whole image, which only the mirror can change: no box of the full area has another ratio.
WHOLE = (1.0, 1.0)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of the cached features, away from the project's own."""
    monkeypatch.setattr("dmlkit.datasets.cache.PROJECT_ROOT", tmp_path)
    return tmp_path / ".cache" / "features"


@pytest.fixture
def watched():
    """A trunk, and the number of images in each of its calls."""
    torch.manual_seed(0)
    trunk, calls = make_trunk("small_convnet"), []
    trunk.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    return SimpleNamespace(trunk=trunk, calls=calls)


def photographs(seed=0, size=18):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (COUNT, 3, size, size), dtype=torch.uint8, generator=generator)
    names = tuple(f"class {c}" for c in range(5))
    return ImageSet(images, torch.arange(COUNT) % 5, names, f"{seed:064x}", torch.arange(COUNT))


def compute(trunk, image_set=None, *, views=2, image_size=16, scale=(0.5, 1.0)):
    return cached_features(
        trunk,
        image_set or photographs(),
        views=views,
        image_size=image_size,
        scale=scale,
        device=CPU,
    )


@torch.no_grad()
def direct(trunk, images):
    return trunk.eval()(images)


def test_view_0_is_what_the_trunk_in_evaluation_mode_makes_of_the_centre_crop(watched):
    image_set = photographs()
    features = compute(watched.trunk.train(), image_set)
    expected = direct(watched.trunk, centre_crop(image_set.images, image_size=16))
    assert features.images.shape == (COUNT, 2, 32)
    assert features.images.dtype == torch.float16
    torch.testing.assert_close(first_view(features.images), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(features.labels, image_set.labels)
    assert features.class_names == image_set.class_names


def test_the_other_views_are_crops_mirrored_half_of_the_time(watched):
    image_set = photographs()
    features = compute(watched.trunk, image_set, views=4, image_size=18, scale=WHOLE).images.float()
    pixels = image_set.images.float() / 255
    plain, mirrored = direct(watched.trunk, pixels), direct(watched.trunk, pixels.flip(-1))

    def is_close(views, expected):
        return torch.isclose(views, expected[:, None], rtol=2e-3, atol=2e-3).all(dim=2)

    others = features[:, 1:]  # (N, 3, F)
    assert (is_close(others, plain) | is_close(others, mirrored)).all()
    assert not (is_close(others, plain) & is_close(others, mirrored)).any()
    assert 0.35 < is_close(others, mirrored).float().mean() < 0.65


def test_views_of_an_image_differ_and_come_out_the_same_again(watched, cache):
    first = compute(watched.trunk, views=3).images.clone()
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # On images this small, two crops may happen to be the same.
        assert (first[:, one] != first[:, other]).any(dim=1).float().mean() > 0.9
    (file,) = cache.glob("*/features.npy")
    shutil.rmtree(file.parent)
    torch.manual_seed(1)
    assert torch.equal(compute(watched.trunk, views=3).images, first)


def test_a_second_call_reads_the_cache_and_leaves_the_trunk_alone(watched, cache):
    first = compute(watched.trunk)
    assert sum(watched.calls) == 2 * COUNT
    again = compute(watched.trunk)
    assert sum(watched.calls) == 2 * COUNT
    assert torch.equal(first.images, again.images)
    assert len(list(cache.glob("*/features.npy"))) == 1


def change_a_weight(trunk):
    with torch.no_grad():
        trunk.layers[0].weight[0, 0, 0, 0] += 0.5


def change_a_running_statistic(trunk):
    trunk.layers[1].running_mean[0] += 0.5


def change_the_pooling(trunk):
    trunk.pooling = "average_and_max"  # of a map of one pixel: twice the average


def change_the_normalisation(trunk):
    trunk.mean += 0.1


@pytest.mark.parametrize(
    "change",
    [change_a_weight, change_a_running_statistic, change_the_normalisation, change_the_pooling],
    ids=lambda f: f.__name__,
)
def test_another_trunk_has_another_cache(change, watched, cache):
    before = compute(watched.trunk).images
    change(watched.trunk)
    after = compute(watched.trunk).images
    assert sum(watched.calls) == 4 * COUNT
    assert not torch.equal(before, after)
    assert len(list(cache.glob("*/features.npy"))) == 2


@pytest.mark.parametrize(
    "setting",
    [{"views": 3}, {"image_size": 17}, {"scale": (0.4, 1.0)}, {"image_set": photographs(seed=1)}],
    ids=lambda setting: next(iter(setting)),
)
def test_other_settings_and_other_images_have_another_cache(setting, watched, cache):
    compute(watched.trunk)
    compute(watched.trunk, **setting)
    assert len(list(cache.glob("*/features.npy"))) == 2


def cached_splits(trunk, splits, views):
    return cache_views(splits, trunk, views, image_size=16, scale=(0.5, 1.0), device=CPU)


def test_all_parts_of_a_data_set_share_one_cache_and_keep_their_own_images(watched, cache):
    splits = split_classes(photographs(), 3, protocol="random", seed=1)

    frozen, stand_in = cached_splits(watched.trunk, splits, 2)

    assert sum(watched.calls) == 2 * COUNT
    assert len(list(cache.glob("*/features.npy"))) == 1
    assert frozen.validation is None and frozen.unlabelled is None
    for part, pixels in ((frozen.train, splits.train), (frozen.test, splits.test)):
        expected = direct(watched.trunk, centre_crop(pixels.all_images(), image_size=16))
        ours = first_view(part.gather(torch.arange(len(part))))
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(part.labels, pixels.labels)
    assert stand_in.out_features == 32


def test_the_stand_in_for_the_trunk_passes_features_through():
    trunk = CachedTrunk(5)
    features = torch.rand(2, 5)
    assert trunk(features) is features
    assert not list(trunk.parameters())


def test_without_views_nothing_changes(watched, cache):
    splits = split_classes(photographs(), 3)
    same_splits, same_trunk = cached_splits(watched.trunk, splits, 0)
    assert same_splits is splits and same_trunk is watched.trunk
    assert not watched.calls and not cache.exists()
