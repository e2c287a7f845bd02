"""Labelled images over a shared store: which of them a set holds, and how they are numbered."""

import torch

from dmlkit.datasets import ImageSet


def numbered(labels, num_classes=None, **more):
    """A set whose image i is filled with i."""
    labels = torch.as_tensor(labels)
    count = len(labels)
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 2, 2)
    names = tuple("abcdefghijklmnopqrstuvwxyz"[: num_classes or int(labels.max()) + 1])
    return ImageSet(images, labels, names, "0a", torch.arange(count), **more)


def contents(image_set):
    return image_set.all_images()[:, 0, 0, 0].tolist()


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


def test_no_classes_leave_no_images():
    part = numbered([0, 1, 1]).keep_classes(torch.tensor([], dtype=torch.int64))
    assert len(part) == part.num_classes == 0
    assert part.all_images().shape == (0, 3, 2, 2)


def test_kept_images_keep_their_labels_and_every_class():
    part = numbered([0, 1, 2, 1]).keep_images(torch.tensor([False, True, False, True]))
    assert contents(part) == [1, 3]
    assert part.labels.tolist() == [1, 1]
    assert part.class_names == ("a", "b", "c")


def test_parts_share_the_store_and_the_fingerprint():
    everything = numbered([0, 1, 2, 3] * 3)
    part = everything.keep_classes(torch.tensor([1, 2])).keep_images(torch.arange(6) > 2)
    assert part.images is everything.images
    assert part.fingerprint == everything.fingerprint


def test_positions_are_those_of_the_part_and_not_of_the_store():
    part = numbered([0, 1, 0, 1, 1]).keep_classes(torch.tensor([1]))
    assert part.gather(torch.tensor([2, 0, 0]))[:, 0, 0, 0].tolist() == [4, 1, 1]
    assert contents(part) == [1, 3, 4]


def test_sizes_and_factors_stay_with_their_images():
    sizes = torch.tensor([[10, 11], [20, 21], [30, 31], [40, 41]])
    rotation = torch.tensor([-1, -2, -3, -4], dtype=torch.int16)
    everything = numbered([0, 1, 0, 1], sizes=sizes, factors={"rotation": rotation})
    part = everything.keep_classes(torch.tensor([1])).keep_images(torch.tensor([False, True]))
    assert contents(part) == [3]
    assert part.sizes_of(torch.tensor([0, 0])).tolist() == [[40, 41], [40, 41]]
    assert part.factor("rotation").tolist() == [-4]
    assert everything.sizes_of(torch.tensor([2, 0])).tolist() == [[30, 31], [10, 11]]
    assert everything.factor("rotation").tolist() == [-1, -2, -3, -4]


def test_without_sizes_none_are_given():
    assert numbered([0, 1]).sizes_of(torch.tensor([1])) is None


def test_another_store_of_the_same_rows_serves_a_part_and_has_no_shape_to_restore():
    sizes, rotation = torch.ones(4, 2, dtype=torch.int64), torch.arange(4)
    everything = numbered([0, 1, 0, 1], sizes=sizes, factors={"rotation": rotation})
    part = everything.keep_classes(torch.tensor([1]))
    features = torch.arange(4.0)[:, None].expand(4, 6)
    other = part.with_images(features)
    assert other.gather(torch.tensor([0, 1]))[:, 0].tolist() == [1.0, 3.0]
    assert other.labels is part.labels and other.class_names == part.class_names
    assert other.sizes_of(torch.tensor([0])) is None
    assert other.factor("rotation").tolist() == [1, 3]
    assert part.sizes is sizes  # the part itself is as it was
