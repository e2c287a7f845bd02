"""Class-disjoint parts: what each protocol takes, and that no class or image is in two of them."""

from itertools import combinations, product

import pytest
import torch

from dmlkit.datasets import ImageSet, split_classes
from dmlkit.datasets.splitting import POOLS, PROTOCOLS, _draw_share
from dmlkit.seeding import derive_seed

PARTS = ("train", "validation", "test", "gallery", "unlabelled")


def numbered(num_classes, images_per_class=4):
    """A set whose image i is of class i modulo ``num_classes``, which is called by its number."""
    count = num_classes * images_per_class
    images = torch.arange(count)[:, None]
    labels = images[:, 0] % num_classes
    return ImageSet(images, labels, tuple(map(str, range(num_classes))), "0a", torch.arange(count))


def images_of(part):
    """Return the numbers of the images of a part, in order."""
    return part.all_images()[:, 0].tolist() if part else []


def classes_of(part):
    """Return the original numbers of the classes of a part, in order."""
    return [int(name) for name in part.class_names] if part else []


def parts_of(splits):
    return {name: part for name in PARTS if (part := getattr(splits, name)) is not None}


def expect_truthful_labels(part, num_classes):
    named = [int(part.class_names[label]) for label in part.labels.tolist()]
    assert named == [image % num_classes for image in images_of(part)]
    assert part.labels.dtype == torch.int64
    assert classes_of(part) == sorted(classes_of(part))


# The official classes.


def test_the_official_split_takes_the_first_classes_and_validates_on_the_last_of_them():
    splits = split_classes(numbered(20), 15, validation_fraction=0.2)
    assert classes_of(splits.train) == list(range(12))
    assert classes_of(splits.validation) == [12, 13, 14]
    assert classes_of(splits.test) == list(range(15, 20))
    assert splits.gallery is splits.unlabelled is None


def test_without_validation_all_training_classes_are_trained_on():
    splits = split_classes(numbered(20), 15)
    assert classes_of(splits.train) == list(range(15))
    assert splits.validation is None


def test_the_seed_does_not_change_the_official_classes():
    first, other = (split_classes(numbered(20), 15, seed=seed) for seed in (0, 1))
    assert classes_of(first.train) == classes_of(other.train)


def test_other_classes_are_the_last_of_the_training_classes_and_validation_those_before():
    splits = split_classes(
        numbered(30), 20, validation_fraction=0.2, pool="other_classes", pool_share=0.5
    )
    assert classes_of(splits.train) == list(range(8))
    assert classes_of(splits.validation) == [8, 9]
    assert classes_of(splits.unlabelled) == list(range(10, 20))
    assert classes_of(splits.test) == list(range(20, 30))
    assert sorted(sum(map(images_of, parts_of(splits).values()), [])) == list(range(120))


def test_the_gallery_holds_the_marked_images_of_the_official_test_classes():
    is_gallery = torch.arange(40) >= 25  # images of classes 5-9, 0-9: also some that are trained on
    splits = split_classes(numbered(10), 6, is_gallery=is_gallery)
    assert images_of(splits.test) == [6, 7, 8, 9, 16, 17, 18, 19]
    assert images_of(splits.gallery) == [26, 27, 28, 29, 36, 37, 38, 39]
    assert classes_of(splits.gallery) == classes_of(splits.test) == [6, 7, 8, 9]
    assert len(splits.train) == 24
    for part in parts_of(splits).values():
        expect_truthful_labels(part, 10)


@pytest.mark.parametrize("protocol", ["random", "reality_check"])
def test_there_is_a_gallery_under_the_official_protocol_only(protocol):
    splits = split_classes(
        numbered(10), 5, protocol=protocol, is_gallery=torch.arange(40) >= 20, seed=1
    )
    assert splits.gallery is None
    assert sorted(images_of(splits.train) + images_of(splits.test)) == list(range(40))


# The Reality Check (Musgrave et al., 2020).


@pytest.mark.parametrize(
    ("half", "num_fit", "num_validation", "starts"),
    [
        (100, 75, 25, {0: 0, 1: 25, 2: 50, 3: 75}),
        (98, 74, 24, {0: 0, 1: 24, 2: 49, 3: 73}),
        (11_317, 8_488, 2_829, {0: 0, 1: 2_829, 2: 5_658, 3: 8_487}),
    ],
    ids=["CUB", "Cars", "SOP"],
)
def test_folds_begin_where_the_reality_check_began_them(half, num_fit, num_validation, starts):
    official_num_train = 11_318 if half == 11_317 else half  # which the Reality Check leaves
    for fold, start in starts.items():
        splits = split_classes(
            numbered(2 * half, 1), official_num_train, protocol="reality_check", fold=fold
        )
        order = [*range(start, half), *range(start)]  # training first, wrapping around
        assert classes_of(splits.train) == sorted(order[:num_fit])
        assert classes_of(splits.validation) == sorted(order[num_fit:])
        assert splits.validation.num_classes == num_validation
        assert classes_of(splits.test) == list(range(half, 2 * half))


def test_the_four_validation_parts_of_cub_cover_its_training_classes_once():
    validated = []
    for fold in range(4):
        splits = split_classes(numbered(200, 1), 100, protocol="reality_check", fold=fold)
        validated += classes_of(splits.validation)
    assert sorted(validated) == list(range(100))
    assert validated[:25] == list(range(75, 100))


@pytest.mark.parametrize("num_train", [3, 10, 18])
def test_the_reality_check_trains_on_the_first_half_of_all_classes(num_train):
    splits = split_classes(numbered(20), num_train, protocol="reality_check")
    assert classes_of(splits.train) == list(range(10))
    assert classes_of(splits.test) == list(range(10, 20))
    assert splits.validation is None


def test_a_fold_takes_the_place_of_the_validation_fraction():
    for fraction in (0.0, 0.2):
        splits = split_classes(numbered(40), 20, fold=0, validation_fraction=fraction)
        assert classes_of(splits.validation) == [15, 16, 17, 18, 19]


def test_the_folds_of_a_random_split_cover_its_training_classes_once():
    def split(fold):
        return split_classes(numbered(40), 20, protocol="random", seed=3, fold=fold)

    validated = sum((classes_of(split(fold).validation) for fold in range(4)), [])
    whole = split(None)
    assert sorted(validated) == classes_of(whole.train) != list(range(20))
    for fold in range(4):
        assert classes_of(split(fold).test) == classes_of(whole.test)


# Random classes.


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("num_classes", "num_train", "fraction"), [(20, 10, 0.0), (20, 15, 0.2), (101, 50, 0.2)]
)
def test_random_classes_are_those_of_every_earlier_run(num_classes, num_train, fraction, seed):
    generator = torch.Generator().manual_seed(derive_seed(seed, "class split"))
    order = torch.randperm(num_classes, generator=generator).tolist()
    first_held_out = num_train - round(num_train * fraction)

    splits = split_classes(
        numbered(num_classes),
        num_train,
        protocol="random",
        seed=seed,
        validation_fraction=fraction,
    )

    assert classes_of(splits.train) == sorted(order[:first_held_out])
    assert classes_of(splits.validation) == sorted(order[first_held_out:num_train])
    assert classes_of(splits.test) == sorted(order[num_train:])


def test_one_random_split_is_known_by_heart():
    splits = split_classes(numbered(10), 5, protocol="random", seed=0)
    assert classes_of(splits.train) == [1, 2, 5, 6, 9]
    assert classes_of(splits.test) == [0, 3, 4, 7, 8]


def split_by(seed, **options):
    splits = split_classes(numbered(20), 10, protocol="random", seed=seed, **options)
    return {name: images_of(part) for name, part in parts_of(splits).items()}


@pytest.mark.parametrize(
    "options",
    [
        {"validation_fraction": 0.2},
        {"pool": "other_classes", "pool_share": 0.4},
        {"pool": "test_classes", "set_aside": 0.5},
    ],
    ids=["validation", "other classes", "set aside"],
)
def test_a_random_split_depends_on_its_seed_alone(options):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = split_by(3, **options)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from the run's own stream
    torch.manual_seed(2)
    assert split_by(3, **options) == first
    assert split_by(4, **options) != first


def test_holding_out_validation_classes_leaves_the_test_classes_as_they_are():
    with_all, held_out = split_by(3), split_by(3, validation_fraction=0.2)
    assert held_out["test"] == with_all["test"]
    assert sorted(held_out["train"] + held_out["validation"]) == with_all["train"]


# Every protocol, with every pool.

GROUPS = torch.tensor([0] * 4 + [1] * 6 + [2] * 5 + [3] * 3 + [4] * 2 + [5] * 5 + [6] * 9 + [7] * 6)
GROUPS = torch.cat([GROUPS, 8 + torch.arange(40) // 4])  # 80 classes of 18 groups; 8 train


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("grouped", [False, True], ids=["single classes", "groups"])
def test_no_class_and_no_image_is_where_it_should_not_be(protocol, pool, grouped):
    groups = GROUPS if grouped else torch.arange(80)
    is_gallery = (torch.arange(320) % 80 >= 40) & (torch.arange(320) >= 160)
    shares = [(0.5, 0.0), (0.5, 0.5)] if pool == "other_classes" else [(0.0, 0.5), (0.5, 0.5)]
    for fold, (pool_share, set_aside) in product((None, 1, 3), shares):
        splits = split_classes(
            numbered(80),
            40,
            protocol=protocol,
            fold=fold,
            seed=fold or 0,
            validation_fraction=0.5,
            groups=GROUPS if grouped else None,
            is_gallery=is_gallery,
            pool=pool,
            pool_share=pool_share,
            set_aside=set_aside,
        )
        parts = parts_of(splits)
        expected = {"train", "validation", "test"}
        expected |= {"gallery"} if protocol == "official" else set()
        expected |= {"unlabelled"} if pool != "none" else set()
        assert parts.keys() == expected
        for part in parts.values():
            assert len(part)
            expect_truthful_labels(part, 80)
            assert part.labels.unique().tolist() == list(range(part.num_classes))
        for one, other in combinations(parts.values(), 2):
            assert not set(images_of(one)) & set(images_of(other))

        classes = {name: set(classes_of(part)) for name, part in parts.items()}
        assert classes.pop("gallery", classes["test"]) == classes["test"]
        hidden = classes.pop("unlabelled", set())
        for one, other in combinations(classes.values(), 2):
            assert not one & other
            assert not set(groups[list(one)].tolist()) & set(groups[list(other)].tolist())
        elsewhere = set(range(80)).difference(*classes.values())
        home = {
            "none": set(),
            "other_classes": elsewhere,
            "labelled_classes": classes["train"],
            "test_classes": classes["test"],
        }
        assert hidden <= home[pool]
        assert bool(hidden) == (pool != "none")


def test_groups_of_each_class_by_itself_are_no_groups():
    for protocol, fold in product(PROTOCOLS, (None, 2)):
        how = {"protocol": protocol, "fold": fold, "seed": 2, "validation_fraction": 0.2}
        without = split_classes(numbered(20), 10, **how)
        single = split_classes(numbered(20), 10, groups=torch.arange(20), **how)
        for name in ("train", "validation", "test"):
            assert images_of(getattr(single, name)) == images_of(getattr(without, name))


def test_a_random_split_of_groups_trains_on_as_many_groups_as_the_official_one():
    official, seen = split_classes(numbered(80), 40, groups=GROUPS), set()
    assert classes_of(official.train) == list(range(40))
    for seed in range(8):
        splits = split_classes(numbered(80), 40, groups=GROUPS, protocol="random", seed=seed)
        groups = GROUPS[classes_of(splits.train)].unique().tolist()
        assert len(groups) == 8
        assert sorted(classes_of(splits.train) + classes_of(splits.test)) == list(range(80))
        seen.add(tuple(groups))
    assert len(seen) == 8


def test_a_group_that_lies_across_the_border_is_trained_on_whole():
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    splits = split_classes(numbered(8), 4, groups=groups)
    assert classes_of(splits.train) == [0, 1, 2, 3, 4]
    assert classes_of(splits.test) == [5, 6, 7]


# Images set aside for pools.


def uneven(sizes):
    """A set with so many images of each class, mixed."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    images = torch.arange(len(labels))[:, None]
    names = tuple(map(str, range(len(sizes))))
    return ImageSet(images, labels, names, "0a", torch.arange(len(labels)))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_same_share_of_every_class_is_set_aside(share):
    sizes = [2, 3, 4, 5, 10, 41, 7, 6]
    everything = uneven(sizes)
    drawn = _draw_share(everything.labels, share, seed=5, fewest_left=2)
    assert drawn.dtype == torch.bool and drawn.shape == everything.labels.shape
    counts = everything.labels[drawn].bincount(minlength=8).tolist()
    assert counts == [min(round(share * size), size - 2) for size in sizes]


def test_every_image_is_set_aside_by_some_seed():
    everything = uneven([4, 6, 8])
    often = sum(_draw_share(everything.labels, 0.5, seed, 1).int() for seed in range(40)) / 40
    assert (often - 0.5).abs().max() < 0.3


def test_other_seeds_set_other_images_aside():
    first, same, other = (
        split_classes(numbered(20, 8), 10, seed=seed, pool="test_classes", set_aside=0.5)
        for seed in (0, 0, 1)
    )
    for name in ("train", "test", "unlabelled"):
        images, again, others = (images_of(getattr(s, name)) for s in (first, same, other))
        assert images == again != others
    assert classes_of(first.train) == classes_of(other.train)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pools_of_images_set_aside_differ_in_nothing_but_their_classes(protocol):
    how = {"protocol": protocol, "seed": 1, "validation_fraction": 0.2}
    splits = {
        pool: split_classes(numbered(60, 6), 30, pool=pool, pool_share=0.5, set_aside=0.5, **how)
        for pool in POOLS
    }
    none = splits.pop("none")
    assert none.unlabelled is None
    for part in ("train", "validation", "test"):
        for other in splits.values():
            assert images_of(getattr(other, part)) == images_of(getattr(none, part))
    assert classes_of(none.train) == classes_of(
        split_classes(numbered(60, 6), 30, pool="other_classes", pool_share=0.5, **how).train
    )
    assert {len(images) for images in map(images_of, (none.train, none.validation))} == {36, 9}
    pools = {name: part.unlabelled for name, part in splits.items()}
    assert {part.num_classes for part in pools.values()} == {12}
    assert {len(part) for part in pools.values()} == {36}
    assert not set(classes_of(none.validation)) & set().union(*map(classes_of, pools.values()))
    assert classes_of(pools["labelled_classes"]) == classes_of(none.train)
    assert set(classes_of(pools["test_classes"])) < set(classes_of(none.test))


def test_without_anything_set_aside_other_classes_give_all_their_images():
    splits = split_classes(numbered(20), 10, pool="other_classes", pool_share=0.4)
    assert images_of(splits.unlabelled) == [i for i in range(80) if i % 20 in range(6, 10)]


def test_a_gallery_loses_its_share_too():
    is_gallery = (torch.arange(160) % 20 >= 10) & (torch.arange(160) >= 80)
    splits = split_classes(
        numbered(20, 8), 10, is_gallery=is_gallery, pool="test_classes", set_aside=0.5
    )
    assert len(splits.test) + len(splits.gallery) == len(splits.unlabelled) == 40
    assert is_gallery[images_of(splits.gallery)].all()
    assert not is_gallery[images_of(splits.test)].any()
    assert is_gallery[images_of(splits.unlabelled)].float().mean() > 0.2


# What is refused.


@pytest.mark.parametrize(
    ("num_train", "options", "message"),
    [
        (
            10,
            {"protocol": "cross"},
            "PROTOCOL='cross' is unknown; choose official, random, reality",
        ),
        (10, {"fold": 4}, "FOLD=4 is unknown; choose 0 to 3"),
        (10, {"fold": -1}, "FOLD=-1 is unknown; choose 0 to 3"),
        (10, {"pool": "all"}, "POOL='all' is unknown; choose none, other_classes, labelled_"),
        (10, {"pool": "other_classes"}, "POOL='other_classes' needs POOL_SHARE above 0, e.g. 0.5"),
        (10, {"pool": "labelled_classes"}, "POOL='labelled_classes' needs SET_ASIDE above 0"),
        (10, {"pool": "test_classes"}, "POOL='test_classes' needs SET_ASIDE above 0"),
        (10, {"pool": "test_classes", "pool_share": 0.5}, "needs SET_ASIDE above 0"),
        (10, {"pool_share": 1.0}, "POOL_SHARE=1.0 and SET_ASIDE=0.0 are shares; use 0 to below 1"),
        (10, {"set_aside": 1.0}, "POOL_SHARE=0.0 and SET_ASIDE=1.0 are shares; use 0 to below 1"),
        (10, {"set_aside": -0.1}, "SET_ASIDE=-0.1 are shares"),
        (7, {"validation_fraction": 0.2}, "7 training classes are too few to hold out 20%"),
        (3, {"validation_fraction": 0.5}, "3 training classes are too few to hold out 50%"),
        (7, {"fold": 0}, "7 training classes are too few to hold out 25%"),
        (1, {}, r"1 training class\(es\) hold no negative pair; use more classes"),
        (19, {}, "20 classes leave fewer than 2 for the test after 19 for training; use more"),
        (25, {}, "20 classes leave fewer than 2 for the test after 25 for training; use more"),
        (10, {"pool": "other_classes", "pool_share": 0.01}, "POOL_SHARE=0.01 takes none of 10"),
        (10, {"set_aside": 0.1}, "SET_ASIDE=0.1 takes no image of classes this small; use more"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused_in_one_sentence(num_train, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        split_classes(numbered(20), num_train, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("num_train", "options"),
    [
        (10, {"validation_fraction": 0.2}),
        (8, {"fold": 3}),
        (2, {}),
        (18, {}),
        (3, {"protocol": "reality_check"}),
        (4, {"pool": "other_classes", "pool_share": 0.5}),
    ],
)
def test_the_fewest_classes_that_do_are_accepted(num_train, options):
    parts = parts_of(split_classes(numbered(20), num_train, **options))
    assert min(part.num_classes for part in parts.values()) >= 2
