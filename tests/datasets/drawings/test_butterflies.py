"""Butterflies: the same bytes everywhere; images and factors that mean what they say."""

import hashlib

import numpy as np
import pytest

from dmlkit.datasets.drawings import aviary
from dmlkit.datasets.drawings.aviary import ANIMAL, pose
from dmlkit.datasets.drawings.butterflies import BUTTERFLIES, FACTORS, draw_butterflies
from dmlkit.datasets.drawings.butterfly_species import draw_species

# Frozen with the difficulty (see the module). A change here is a change of the data set, and every
# committed result drawn from it is void.
DIGEST = "963239102677fa90269bb60696308ebd959fe6c4ecb5a2048e4d9cc22b79eed8"
STRAIGHT = {"rotation": 0, "scale": 100, "foreshortening": 100, "bend": 0, "x": 0, "y": 0}


@pytest.fixture(scope="module")
def small():
    return draw_butterflies(4, 6, seed=0)


def draw_image(*key, **factors):
    return aviary.draw_image(*key, family=BUTTERFLIES, **factors)


def test_a_small_drawing_has_the_frozen_bytes(small):
    wide = draw_butterflies(2, 3, seed=1, image_size=96, pattern_share=0.8)
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


def test_both_families_have_the_same_factors_and_no_stream_in_common(small):
    birds = aviary.draw_aviary(4, 6, seed=0)
    assert list(birds.factors) == list(small.factors)
    for name in ("brightness", "warmth", "background"):  # their ranges are the same
        assert not np.array_equal(birds.factors[name], small.factors[name])


def test_a_set_may_begin_anywhere_and_be_uneven(small):
    later = draw_butterflies(2, [3, 1], seed=0, first_species=2, first_image=2)
    rows = [2 * 6 + 2, 2 * 6 + 3, 2 * 6 + 4, 3 * 6 + 2]
    assert later.labels.tolist() == [0, 0, 0, 1]
    assert later.class_names == ["species 002", "species 003"]
    assert np.array_equal(later.images, small.images[rows])
    for name, values in later.factors.items():
        assert np.array_equal(values, small.factors[name][rows])


def test_pattern_share_changes_the_butterfly_but_not_its_surroundings():
    colourful, patterned = (draw_image(0, 0, 0, pattern_share=share) for share in (0, 1))
    for name in FACTORS:
        assert colourful[1][name] == patterned[1][name]
    assert not np.array_equal(colourful[0], patterned[0])


def test_all_directions_are_as_likely():
    degrees = [draw_image(0, 0, index, image_size=24)[1]["rotation"] for index in range(200)]
    quarters = np.histogram(degrees, bins=[-180, -90, 0, 90, 180])[0]
    assert quarters.min() > 30


@pytest.mark.parametrize(("degrees", "quarter_turns"), [(90, 1), (-90, 3), (-180, 2)])
def test_rotation_turns_the_butterfly_to_the_left(degrees, quarter_turns):
    sprite, _ = draw_species(0, 3, 50)
    straight = pose(sprite, STRAIGHT)
    turned = np.rot90(pose(sprite, STRAIGHT | {"rotation": degrees}), -quarter_turns)
    # The canvas has no middle pixel, so a turned one may be a pixel off in both directions.
    offsets = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    differing = [np.mean(np.roll(turned, offset, (0, 1)) != straight) for offset in offsets]
    assert min(differing) < 0.02
    assert np.mean(turned != straight) < 0.25 < np.mean(straight != straight[::-1])


def test_folding_narrows_the_wings_and_bending_sweeps_them():
    sprite, _ = draw_species(0, 3, 50)

    def extent(**factors):
        rows, columns = pose(sprite, STRAIGHT | factors).nonzero()
        return np.ptp(columns), rows[columns < columns.min() + 9].mean()

    spread, level = extent()
    assert extent(foreshortening=60)[0] == pytest.approx(0.6 * spread, abs=2)
    assert extent(bend=60)[1] < level - 5 < level + 5 < extent(bend=-60)[1]  # tips ahead, back


def test_place_and_size_of_the_butterfly_are_those_of_its_factors():
    sprite, _ = draw_species(0, 3, 50)
    straight = pose(sprite, STRAIGHT)
    moved = pose(sprite, STRAIGHT | {"x": 10, "y": -7})
    assert np.array_equal(moved, np.roll(straight, (-7, 10), (0, 1)))
    larger = pose(sprite, STRAIGHT | {"scale": 120})
    assert np.count_nonzero(larger) == pytest.approx(1.44 * np.count_nonzero(straight), rel=0.02)


def test_hidden_is_the_share_of_the_butterfly_that_leaves_cover():
    for index in range(6):
        how = {"image_size": 192, "blur": 0, "mirrored": 0}
        free, factors = draw_image(0, 1, index, **how, leaves=0)
        assert factors["hidden"] == 0
        covered, factors = draw_image(0, 1, index, **how, leaves=5)
        butterfly = pose(draw_species(0, 1, 50)[0], factors) >= ANIMAL
        share = 100 * np.mean((free != covered).any(axis=0)[butterfly])
        assert factors["hidden"] == pytest.approx(share, abs=1.5)


def test_mirrored_flips_the_whole_picture():
    straight, _ = draw_image(0, 1, 0, mirrored=0)
    mirrored, _ = draw_image(0, 1, 0, mirrored=1)
    assert np.array_equal(mirrored, straight[:, :, ::-1])


def test_light_haze_blur_and_noise_do_what_they_say():
    plain = {"noise": 0, "blur": 0, "haze": 0}

    def image(**factors):
        return draw_image(0, 1, 0, **plain | factors)[0].astype(int)

    dark, bright = (image(brightness=value) for value in FACTORS["brightness"])
    assert dark.mean() < bright.mean()
    cold, warm = (image(warmth=value).mean(axis=(1, 2)) for value in FACTORS["warmth"])
    assert cold[0] < warm[0] and cold[2] > warm[2]
    assert image(haze=14).std() < image().std()
    assert abs(np.diff(image(blur=2))).mean() < abs(np.diff(image())).mean()
    assert (image(noise=5) - image()).std() == pytest.approx(5, rel=0.3)


def test_a_fixed_factor_changes_no_other():
    _, drawn = draw_image(0, 1, 0)
    for name in FACTORS:
        _, factors = draw_image(0, 1, 0, **{name: FACTORS[name][1]})
        unchanged = FACTORS.keys() - {name}
        assert factors[name] == FACTORS[name][1]
        assert {key: factors[key] for key in unchanged} == {key: drawn[key] for key in unchanged}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes=0"),
        ({"images_per_class": [2, 2]}, "2 counts for num_classes=1"),
        ({"image_size": 50}, "image_size=50"),
        ({"pattern_share": -0.1}, "pattern_share=-0.1"),
        ({"first_species": -1}, "first_species=-1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_impossible_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_butterflies(**{"num_classes": 1, "images_per_class": 1, "seed": 0} | arguments)
