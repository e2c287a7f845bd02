"""The aviary: the same bytes everywhere; images and factors that mean what they say."""

import hashlib

import numpy as np
import pytest

from dmlkit.datasets.drawings.aviary import FACTORS, draw_aviary, draw_image, pool_counts

# Frozen with the difficulty (see the module). A change here is a change of the data set, and every
# committed result drawn from it is void.
DIGEST = "498e805d7b2b0818f81a4dd48252abcd9faa106da72b42985338ac2b8432aafe"


@pytest.fixture(scope="module")
def small():
    return draw_aviary(4, 6, seed=0)


def test_a_small_drawing_has_the_frozen_bytes(small):
    wide = draw_aviary(2, 3, seed=1, image_size=96, pattern_share=0.8)
    content = hashlib.sha256(small.images.tobytes() + wide.images.tobytes())
    for name in sorted(small.factors):
        content.update(name.encode() + small.factors[name].astype("<i2").tobytes())
    assert content.hexdigest() == DIGEST


def test_images_labels_names_and_factors_have_their_shapes_and_types(small):
    assert small.images.shape == (24, 3, 48, 48)
    assert small.images.dtype == np.uint8
    assert small.labels.dtype == np.int64
    assert small.labels.tolist() == [species for species in range(4) for _ in range(6)]
    assert small.class_names == ["species 000", "species 001", "species 002", "species 003"]
    assert small.factors.keys() == {*FACTORS, "hidden"}
    for name, (low, high) in FACTORS.items():
        values = small.factors[name]
        assert values.shape == (24,) and values.dtype == np.int16
        assert low <= values.min() and values.max() <= high
    assert small.factors["hidden"].min() >= 0
    assert small.factors["hidden"].max() <= 100


def test_the_same_arguments_draw_the_same_images(small):
    again = draw_aviary(4, 6, seed=np.int64(0))
    assert np.array_equal(again.images, small.images)


def test_more_classes_and_more_images_leave_the_earlier_ones_as_they_are(small):
    larger = draw_aviary(5, 8, seed=0)
    kept = larger.images.reshape(5, 8, 3, 48, 48)[:4, :6]
    assert np.array_equal(kept.reshape(small.images.shape), small.images)


def test_a_set_may_begin_at_any_species_and_image(small):
    later = draw_aviary(2, 3, seed=0, first_species=2, first_image=3)
    chosen = small.labels.reshape(4, 6)[2:, 3:].ravel() - 2
    assert later.labels.tolist() == chosen.tolist()
    assert later.class_names == small.class_names[2:]
    assert np.array_equal(
        later.images, small.images.reshape(4, 6, 3, 48, 48)[2:, 3:].reshape(6, 3, 48, 48)
    )
    for name, values in later.factors.items():
        assert np.array_equal(values, small.factors[name].reshape(4, 6)[2:, 3:].ravel())


@pytest.mark.parametrize("make", [list, tuple, np.array], ids=["list", "tuple", "array"])
def test_each_species_may_have_a_number_of_images_of_its_own(small, make):
    uneven = draw_aviary(3, make([2, 1, 4]), seed=0)
    assert uneven.labels.tolist() == [0, 0, 1, 2, 2, 2, 2]
    assert np.array_equal(uneven.images, small.images[[0, 1, 6, 12, 13, 14, 15]])


def test_pools_are_long_tailed_and_in_no_order():
    for seed in range(5):
        counts = pool_counts(100, seed)
        assert all(type(count) is int for count in counts)
        assert min(counts) == 2 and 65 <= max(counts) <= 80
        assert 1900 <= sum(counts) <= 2200
        assert np.median(counts) < np.mean(counts) * 2 / 3
        assert abs(np.corrcoef(counts, range(100))[0, 1]) < 0.3
    assert pool_counts(37, 4) == counts[:37]
    assert pool_counts(100, 0) != pool_counts(100, 1)


def test_pool_counts_are_the_frozen_ones():
    assert pool_counts(12, 0) == [74, 8, 6, 2, 55, 2, 15, 4, 35, 25, 9, 2]


def test_a_single_image_is_the_one_in_the_set(small):
    image, factors = draw_image(0, 2, 3)
    assert np.array_equal(image, small.images[2 * 6 + 3])
    assert factors == {name: values[2 * 6 + 3] for name, values in small.factors.items()}


def test_pattern_share_changes_the_bird_but_not_its_surroundings():
    colourful, patterned = (draw_image(0, 0, 0, pattern_share=share) for share in (0, 1))
    for name in FACTORS:
        assert colourful[1][name] == patterned[1][name]
    assert not np.array_equal(colourful[0], patterned[0])


def test_mirrored_flips_the_whole_picture():
    straight, _ = draw_image(0, 1, 0, mirrored=0)
    mirrored, _ = draw_image(0, 1, 0, mirrored=1)
    assert np.array_equal(mirrored, straight[:, :, ::-1])


def test_a_fixed_factor_changes_no_other():
    _, drawn = draw_image(0, 1, 0)
    for name in FACTORS:
        _, factors = draw_image(0, 1, 0, **{name: FACTORS[name][1]})
        unchanged = FACTORS.keys() - {name}
        assert factors[name] == FACTORS[name][1]
        assert {key: factors[key] for key in unchanged} == {key: drawn[key] for key in unchanged}


def test_brightness_and_leaves_do_what_they_say():
    dark, bright = (
        draw_image(0, 1, 0, brightness=value)[0].mean() for value in FACTORS["brightness"]
    )
    assert dark < bright
    assert draw_image(0, 1, 0, leaves=0)[1]["hidden"] == 0
    hidden = [draw_image(0, 1, index, leaves=5)[1]["hidden"] for index in range(10)]
    assert max(hidden) > 0


def test_every_size_shows_the_same_picture():
    for index in range(4):
        small, large = (draw_image(0, 3, index, image_size=s, blur=0)[0] for s in (48, 96))
        reduced = large.reshape(3, 48, 2, 48, 2).mean(axis=(2, 4))
        assert abs(reduced - small).mean() < 10  # grey levels: the noise differs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"images_per_class": -1}, "images_per_class=-1"),
        ({"images_per_class": [0]}, "images_per_class=0"),
        ({"images_per_class": [3, 4]}, "2 counts for num_classes=1"),
        ({"images_per_class": []}, "0 counts for num_classes=1"),
        ({"first_species": -1}, "first_species=-1"),
        ({"first_image": -2}, "first_image=-2"),
        ({"image_size": 50}, "image_size=50"),
        ({"image_size": 8}, "image_size=8"),
        ({"pattern_share": 1.5}, "pattern_share=1.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_aviary(**{"num_classes": 1, "images_per_class": 1, "seed": 0} | arguments)


def test_an_unknown_factor_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['colour'\].*brightness"):
        draw_image(0, 0, 0, colour=3)
