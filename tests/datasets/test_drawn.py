"""Drawn families as image sets: their species and images, what is known of them, their pools."""

import os

import numpy as np
import pytest
import torch

from dmlkit.datasets import drawn, load
from dmlkit.datasets.drawings.aviary import BIRDS, FACTORS, DrawnSet, draw_image, pool_counts
from dmlkit.datasets.drawings.butterflies import BUTTERFLIES
from dmlkit.datasets.splitting import POOLS

FAMILIES = {"aviary": BIRDS, "butterflies": BUTTERFLIES}
FEW = {"image_size": 24, "max_classes": 20, "max_images_per_class": 2}
PARTS = ("train", "validation", "test", "unlabelled")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of all caches, of this test alone."""
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the artist of both families, whose pictures show species, image, seed."""
    calls = []

    def paint(num, counts, seed, *, image_size, pattern_share, first_species, first_image):
        calls.append((num, first_species, first_image))
        species = np.repeat(np.arange(first_species, first_species + num), counts)
        index = np.concatenate([first_image + np.arange(count) for count in counts])
        images = np.zeros((len(species), 3, image_size, image_size), np.uint8)
        images[:, :, 0, 0] = np.stack([species, index, np.full_like(index, seed)], axis=1)
        factors = {name: (100 * species + index).astype(np.int16) for name in (*FACTORS, "hidden")}
        return DrawnSet(images, np.repeat(np.arange(num), counts), [""] * num, factors)

    for family in FAMILIES:
        monkeypatch.setitem(drawn.FAMILIES, family, paint)
    return calls


def painted(part):
    """Return the species and the number of each image that the artist painted."""
    pictures = part.all_images()[:, :2, 0, 0].tolist()
    return [species for species, _ in pictures], [number for _, number in pictures]


@pytest.mark.parametrize("family", FAMILIES)
def test_images_and_all_their_factors_are_those_of_the_artist_in_every_part(family):
    how = {"pool": "labelled_classes", "selection": "validation", "pattern_share": 0.3}
    splits = load(family, **FEW, **how)
    for name in PARTS:
        part = getattr(splits, name)
        for position in (0, len(part) // 2, len(part) - 1):
            label = part.labels[position]
            species = int(part.class_names[label].split()[1])
            number = (part.labels[:position] == label).sum().item()
            number += 2 * (name == "unlabelled")
            image, factors = draw_image(
                0, species, number, family=FAMILIES[family], image_size=24, pattern_share=0.3
            )
            assert np.array_equal(part.gather(torch.tensor([position]))[0], image)
            assert {key: part.factor(key)[position].item() for key in factors} == factors
            assert part.factor("rotation").shape == part.labels.shape


def test_half_of_a_hundred_species_train_on_24_images_each(asked):
    splits = load("aviary", image_size=2)
    assert painted(splits.train) == (
        [species for species in range(50) for _ in range(24)],
        [number for _ in range(50) for number in range(24)],
    )
    assert sorted(set(painted(splits.test)[0])) == list(range(50, 100))
    assert splits.test.class_names[0] == "species 050 of seed 0"
    assert len(splits.test) == 1200
    assert splits.test.factor("leaves").tolist() == [
        100 * species + number for species in range(50, 100) for number in range(24)
    ]
    assert splits.validation is splits.gallery is splits.unlabelled is None
    assert splits.train.images.dtype == torch.uint8
    assert splits.train.factor("hidden").dtype == torch.int16
    assert asked == [(100, 0, 0)]


@pytest.mark.parametrize(
    ("pool", "first_species", "first_image"),
    [("other_classes", 100, 0), ("labelled_classes", 0, 24), ("test_classes", 50, 24)],
)
def test_pools_have_other_species_or_further_images_of_these(
    pool, first_species, first_image, asked
):
    splits = load("butterflies", image_size=2, protocol="random", seed=3, pool=pool)
    counts = pool_counts(50, 3)
    species, numbers = painted(splits.unlabelled)
    assert species == np.repeat(range(first_species, first_species + 50), counts).tolist()
    assert numbers == [first_image + number for count in counts for number in range(count)]
    assert splits.unlabelled.num_classes == 50
    assert splits.unlabelled.class_names[0] == f"species {first_species:03d} of seed 3"
    assert splits.unlabelled.labels.bincount().tolist() == counts
    without = load("butterflies", image_size=2, protocol="random", seed=3)
    for part in ("train", "test"):
        assert torch.equal(getattr(splits, part).index, getattr(without, part).index)
        assert getattr(splits, part).fingerprint == getattr(without, part).fingerprint


@pytest.mark.parametrize("held_out", [{"selection": "validation"}, {"fold": 2}, {"fold": 0}])
def test_pools_leave_out_the_species_held_out_for_validation(held_out, asked):
    sizes = {}
    for pool in POOLS[1:]:
        splits = load("aviary", image_size=2, pool=pool, **held_out)
        validated, hidden = set(painted(splits.validation)[0]), set(painted(splits.unlabelled)[0])
        assert not validated & hidden
        sizes[pool] = len(hidden)
        if pool == "labelled_classes":
            assert hidden == set(painted(splits.train)[0])
        if pool == "test_classes":
            assert hidden < set(painted(splits.test)[0])
    assert set(sizes.values()) == {splits.train.num_classes}


def test_no_image_is_drawn_twice_in_any_of_the_pools():
    splits = {pool: load("aviary", pool=pool, **FEW) for pool in POOLS[1:]}
    parts = [splits["other_classes"].train, splits["other_classes"].test]
    parts += [split.unlabelled for split in splits.values()]
    images = [image.numpy().tobytes() for part in parts for image in part.all_images()]
    assert len(set(images)) == len(images) == 40 + 3 * 20


def test_pools_have_at_most_as_many_images_of_a_species_as_the_limit(asked):
    limited = {"image_size": 2, "max_classes": 30, "max_images_per_class": 5}
    splits = load("aviary", pool="other_classes", **limited)
    counts = splits.unlabelled.labels.bincount().tolist()
    assert counts == [min(count, 5) for count in pool_counts(15, 0)]
    assert sorted(set(painted(splits.unlabelled)[0])) == list(range(30, 45))


def test_random_species_are_others_for_each_seed_and_official_ones_never(asked):
    def loaded(**how):
        splits = load("aviary", **FEW, pool="other_classes", **how)
        seeds = {int(part.all_images()[0, 2, 0, 0]) for part in (splits.train, splits.unlabelled)}
        return seeds, splits.train.fingerprint, splits.train.class_names

    first = loaded()
    assert first[0] == {0}
    assert loaded(seed=1) == loaded(protocol="reality_check", seed=2) == first
    assert loaded(protocol="random", seed=0) == first
    for seed in (1, 2):
        seeds, fingerprint, names = loaded(protocol="random", seed=seed)
        assert seeds == {seed}
        assert fingerprint != first[1] and not set(names) & set(first[2])


def test_random_species_are_split_like_official_ones(asked):
    splits = load("aviary", **FEW, protocol="random", seed=5, selection="validation")
    assert sorted(set(painted(splits.train)[0])) == list(range(8))
    assert sorted(set(painted(splits.validation)[0])) == [8, 9]
    assert sorted(set(painted(splits.test)[0])) == list(range(10, 20))


@pytest.mark.parametrize("protocol", ["official", "random", "reality_check"])
def test_folds_hold_out_a_quarter_of_the_training_species(protocol, asked):
    splits = load("aviary", **FEW | {"max_classes": 16}, protocol=protocol, fold=1)
    assert sorted(set(painted(splits.train)[0])) == [2, 3, 4, 5, 6, 7]
    assert sorted(set(painted(splits.validation)[0])) == [0, 1]
    assert sorted(set(painted(splits.test)[0])) == list(range(8, 16))


def test_a_second_loading_draws_nothing(asked, cache):
    first = load("aviary", **FEW, pool="test_classes")
    assert asked == [(20, 0, 0), (10, 10, 2)]
    again = load("aviary", **FEW, pool="test_classes")
    assert len(asked) == 2
    assert torch.equal(first.train.images, again.train.images)
    assert first.train.fingerprint == again.train.fingerprint != first.unlabelled.fingerprint
    assert torch.equal(first.test.factor("bend"), again.test.factor("bend"))
    assert len([path for path in (cache / "drawn").iterdir() if path.is_dir()]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 4},
        {"pattern_share": 0.4},
        {"protocol": "random", "seed": 1},
        {"max_classes": 18},
        {"max_images_per_class": 3},
        {"name": "butterflies"},
    ],
    ids=lambda change: " ".join(change),
)
def test_whatever_changes_the_drawing_draws_it_anew(change, asked):
    load(**{"name": "aviary"} | FEW)
    load(**{"name": "aviary"} | FEW | change)
    assert len(asked) == 2


def test_every_beginning_is_a_drawing_of_its_own(asked):
    firsts = [(0, 0), (0, 2), (5, 0), (5, 2)]
    for species, image in 2 * firsts:
        how = {"image_size": 2, "pattern_share": 0.5}
        part = drawn.draw("aviary", [1, 2], 0, first_species=species, first_image=image, **how)
        assert painted(part) == ([species, species + 1, species + 1], [image, image, image + 1])
        assert part.labels.tolist() == [0, 1, 1]
    assert len(asked) == 4


def test_other_code_draws_anew(asked, monkeypatch, tmp_path):
    assert {"aviary", "butterflies"} <= {p.stem for p in (drawn.HERE / "drawings").glob("*.py")}
    load("aviary", **FEW)
    monkeypatch.setattr(drawn, "HERE", tmp_path)
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings" / "aviary.py").write_text("other code")
    load("aviary", **FEW)
    assert len(asked) == 2


def test_families_and_shares_of_pattern_draw_different_pictures():
    kinds = [("aviary", 0.0), ("aviary", 1.0), ("butterflies", 0.5)]
    found = {load(name, pattern_share=share, **FEW).train.fingerprint for name, share in kinds}
    assert len(found) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "nabirds"}, "POOL='nabirds' is unknown for drawn data; choose none, other_cl"),
        ({"protocol": "half"}, "PROTOCOL='half' is unknown; choose official, random, reality_"),
        ({"fold": 4}, "FOLD=4 is unknown; choose 0 to 3"),
        ({"max_classes": 3}, r"1 training class\(es\) hold no negative pair"),
        ({"image_size": 50}, "image_size=50 is not possible"),
        ({"pattern_share": 2.0}, "pattern_share=2.0 is not a share"),
    ],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_nothing_half_drawn(options, message, cache):
    with pytest.raises(ValueError, match=message):
        load("aviary", **FEW | options)
    if (cache / "drawn").exists():
        assert not [name for name in os.listdir(cache / "drawn") if "partial" in name]
