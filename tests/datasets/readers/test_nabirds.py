"""NABirds: class numbers with gaps, and images in no order."""

import pytest

from dmlkit.datasets import list_images
from dmlkit.datasets.readers.nabirds import ABOUT
from tests.official_trees import make_tree


@pytest.fixture
def folder(tmp_path):
    return make_tree("nabirds", tmp_path, num_classes=25)


def test_the_counts_are_the_published_ones():
    assert ABOUT.published == {"all": (48562, 555)}


def test_classes_are_in_the_order_of_their_numbers_and_those_without_images_do_not_count(folder):
    listing = list_images("nabirds", folder)
    numbers = sorted({int(file.split("/")[1]) for file in listing.files})
    assert len(numbers) == 25 and numbers[-1] == 1010 and 999 not in numbers
    assert listing.class_names == tuple(f"Bird {n} (Adult, male)" for n in numbers)
    for file, label in zip(listing.files, listing.labels, strict=True):
        assert int(file.split("/")[1]) == numbers[label]
    assert listing.labels.tolist() != sorted(listing.labels)


def test_the_first_half_of_the_classes_trains(folder, tmp_path):
    assert list_images("nabirds", folder).num_train == 12
    full = make_tree("nabirds", tmp_path / "full", full=True, pictures=False)
    assert list_images("nabirds", full).num_train == 277


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "classes.txt"])
def test_a_missing_list_is_named(file, folder):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing; unpack the data set again"):
        list_images("nabirds", folder)


def test_other_birds_in_the_same_layout_are_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no hierarchy\.txt"):
        list_images("nabirds", make_tree("cub200_2011", tmp_path))
