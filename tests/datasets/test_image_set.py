"""Parts of a data set: which classes and images they hold, and how they are numbered."""

import pytest
import torch

from dmlkit.datasets import ImageSet, split_classes

PARTS = ("train", "validation", "test")


def numbered(labels, num_classes=None):
    """A set whose image i is filled with i."""
    labels = torch.as_tensor(labels)
    count = len(labels)
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2)
    names = tuple("abcdefghijklmnopqrstuvwxyz"[: num_classes or int(labels.max()) + 1])
    return ImageSet(images, labels, names, "0a", torch.arange(count))


def twenty_classes():
    return numbered([label for _ in range(3) for label in range(20)])


def contents(image_set):
    return image_set.all_images()[:, 0, 0, 0].tolist()


def classes_of(part):
    """Return the original class numbers of a part, read off its images."""
    return sorted({number % 20 for number in contents(part)})


def test_kept_classes_are_renumbered_from_zero_and_keep_names_and_images():
    part = numbered([2, 0, 3, 2, 1, 3]).keep_classes(torch.tensor([3, 0]))
    assert part.labels.tolist() == [0, 1, 1]
    assert part.class_names == ("a", "d")
    assert contents(part) == [1, 2, 5]
    assert part.num_classes == 2 and len(part) == 3
    assert part.labels.dtype == torch.int64


def test_classes_of_a_part_can_be_kept_again():
    part = numbered([0, 1, 2, 3, 3, 2]).keep_classes(torch.tensor([1, 2, 3]))
    again = part.keep_classes(torch.tensor([2, 1]))
    assert again.class_names == ("c", "d")
    assert contents(again) == [2, 3, 4, 5]
    assert again.labels.tolist() == [0, 1, 1, 0]


def test_parts_share_the_store_and_the_fingerprint():
    everything = twenty_classes()
    part = everything.keep_classes(torch.tensor([5])).keep_images_per_class(2)
    assert part.images is everything.images
    assert part.fingerprint == everything.fingerprint


def test_the_first_images_of_each_class_are_kept_in_stored_order():
    image_set = numbered([1, 0, 1, 1, 0, 3, 1], num_classes=4)  # no image of class 2
    part = image_set.keep_images_per_class(2)
    assert contents(part) == [0, 1, 2, 4, 5]
    assert part.labels.tolist() == [1, 0, 1, 0, 3]
    assert part.class_names == image_set.class_names
    assert contents(image_set.keep_images_per_class(9)) == list(range(7))


def test_positions_are_those_of_the_part_and_not_of_the_store():
    part = numbered([0, 1, 0, 1, 1]).keep_classes(torch.tensor([1]))
    assert part.gather(torch.tensor([2, 0, 0]))[:, 0, 0, 0].tolist() == [4, 1, 1]


def test_another_store_of_the_same_rows_serves_a_part():
    part = numbered([0, 1, 0, 1]).keep_classes(torch.tensor([1]))
    features = torch.arange(4.0)[:, None].expand(4, 6)
    assert part.with_images(features).gather(torch.tensor([0, 1]))[:, 0].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("protocol", ["official", "random"])
@pytest.mark.parametrize("fraction", [0.0, 0.2])
def test_parts_have_disjoint_classes_and_together_all_images(protocol, fraction):
    splits = split_classes(twenty_classes(), 10, protocol=protocol, validation_fraction=fraction)
    parts = [part for name in PARTS if (part := getattr(splits, name)) is not None]
    assert [part.num_classes for part in parts] == ([8, 2, 10] if fraction else [10, 10])
    assert sorted(sum(map(classes_of, parts), [])) == list(range(20))
    assert sorted(sum(map(contents, parts), [])) == list(range(60))
    for part in parts:
        assert part.labels.unique().tolist() == list(range(part.num_classes))
        original = [part.class_names[label] for label in part.labels.tolist()]
        assert original == ["abcdefghijklmnopqrst"[number % 20] for number in contents(part)]


def test_the_official_split_takes_the_first_classes_and_validates_on_the_last_fifth_of_them():
    splits = split_classes(twenty_classes(), 15, validation_fraction=0.2)
    assert classes_of(splits.train) == list(range(12))
    assert classes_of(splits.validation) == [12, 13, 14]
    assert classes_of(splits.test) == list(range(15, 20))


def test_without_validation_all_training_classes_are_trained_on():
    splits = split_classes(twenty_classes(), 15)
    assert classes_of(splits.train) == list(range(15))
    assert splits.validation is None
    assert splits.query is splits.gallery is splits.unlabelled is None


def split_by(seed, fraction=0.2):
    splits = split_classes(
        twenty_classes(), 10, protocol="random", seed=seed, validation_fraction=fraction
    )
    return [classes_of(part) for part in (splits.train, splits.validation, splits.test) if part]


def test_a_random_split_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = split_by(3)
    torch.manual_seed(2)
    assert split_by(3) == first
    assert split_by(4) != first
    assert first != [list(range(8)), [8, 9], list(range(10, 20))]


def test_holding_out_validation_classes_leaves_the_test_classes_as_they_are():
    train, validation, test = split_by(3)
    all_train, same_test = split_by(3, fraction=0.0)
    assert same_test == test
    assert all_train == sorted(train + validation)


@pytest.mark.parametrize(
    ("num_train", "options", "message"),
    [
        (10, {"protocol": "cross"}, "PROTOCOL='cross' is unknown; choose official or random"),
        (7, {"validation_fraction": 0.2}, "7 training classes are too few to hold out 20%"),
        (3, {"validation_fraction": 0.5}, "3 training classes are too few to hold out 50%"),
        (1, {}, "1 training class.* no negative pair"),
        (19, {}, "20 classes leave fewer than 2 for the test after 19"),
        (25, {}, "20 classes leave fewer than 2 for the test after 25"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(num_train, options, message):
    with pytest.raises(ValueError, match=message):
        split_classes(twenty_classes(), num_train, **options)
