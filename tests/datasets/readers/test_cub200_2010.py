"""CUB-200 of 2010: folders that are numbered, and no lists."""

import pytest

from dmlkit.datasets import list_images
from dmlkit.datasets.readers.cub200_2010 import ABOUT
from dmlkit.paths import PROJECT_ROOT
from tests.official_trees import make_tree


def test_the_protocol_is_the_published_one():
    assert ABOUT.published == {"all": (6033, 200), "train": (2990, 100), "test": (3043, 100)}


def test_classes_are_in_the_order_of_their_numbers_and_the_first_hundred_train(tmp_path):
    listing = list_images("cub200_2010", make_tree("cub200_2010", tmp_path, num_classes=24))
    numbers = [*range(1, 13), *range(101, 113)]
    assert listing.class_names == tuple(f"{n:03d}.Bird_{n}" for n in numbers)
    assert listing.num_train == 12
    for file, label in zip(listing.files, listing.labels, strict=True):
        assert file.startswith(f"images/{listing.class_names[label]}/")


def test_class_100_trains_and_class_101_tests(tmp_path):
    folder = make_tree("cub200_2010", tmp_path)
    (folder / "images" / "004.Bird_4").rename(folder / "images" / "100.Bird_100")
    listing = list_images("cub200_2010", folder)
    assert listing.class_names[3:5] == ("100.Bird_100", "101.Bird_101")
    assert listing.num_train == 4


def test_its_successor_is_not_taken_for_it(tmp_path):
    folder = make_tree("cub200_2011", tmp_path)
    (folder / "generated_tree.json").unlink()
    with pytest.raises(ValueError, match=r"cub200_2010 in .* lists .* protocol has 6,033 images"):
        list_images("cub200_2010", folder)


def test_photographs_on_this_machine_are_those_of_200_species():
    if not (PROJECT_ROOT / "data" / "cub200_2010").is_dir():
        pytest.skip("there is no data/cub200_2010")
    listing = list_images("cub200_2010", PROJECT_ROOT / "data")
    assert listing.num_train == 100 and not listing.is_generated
    assert listing.class_names[0] == "001.Black_footed_Albatross"
    assert listing.class_names[199] == "200.Common_Yellowthroat"
    assert [int(name[:3]) for name in listing.class_names] == [*range(1, 201)]
