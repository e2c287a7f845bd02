"""Stanford Online Products: two lists with a header each."""

import pytest

from dmlkit.datasets import list_images
from dmlkit.datasets.readers.stanford_online_products import ABOUT
from tests.official_trees import make_tree

NAME = "stanford_online_products"
PUBLISHED = {"all": (120053, 22634), "train": (59551, 11318), "test": (60502, 11316)}


@pytest.fixture
def folder(tmp_path):
    return make_tree(NAME, tmp_path, num_classes=24, images_per_class=2)


def append(path, line):
    path.write_text(path.read_text() + line + "\n")


def test_the_protocol_is_the_published_one():
    assert ABOUT.published == PUBLISHED


def test_classes_are_in_the_order_of_their_numbers_and_the_training_list_trains(folder):
    listing = list_images(NAME, folder)
    numbers = [*range(1, 13), *range(11319, 11331)]
    assert listing.class_names == tuple(map(str, numbers))
    assert listing.num_train == 12
    rows = [line.split() for line in (folder / "Ebay_train.txt").read_text().splitlines()[1:]]
    rows += [line.split() for line in (folder / "Ebay_test.txt").read_text().splitlines()[1:]]
    assert listing.files == [path for *_, path in rows]
    assert [numbers[label] for label in listing.labels] == [int(row[1]) for row in rows]
    assert listing.files[0].endswith("_0.JPG")


def test_class_11318_trains_and_class_11319_tests(tmp_path):
    listing = list_images(NAME, make_tree(NAME, tmp_path, full=True, pictures=False))
    assert listing.class_names[11317:11319] == ("11318", "11319")
    assert listing.num_train == 11318


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("Ebay_train.txt", r"there is no Ebay_train\.txt in it"),
        ("Ebay_test.txt", r"Ebay_test\.txt is missing; unpack the data set again"),
    ],
)
def test_a_missing_list_is_named(file, message, folder):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        list_images(NAME, folder)


@pytest.mark.parametrize("line", ["49 x 1 a.JPG", "49 11319 1", "<html>"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_line_of_another_form_is_refused(part, line, folder):
    append(folder / f"Ebay_{part}.txt", line)
    with pytest.raises(ValueError, match="lines are not 'image_id class_id super_class_id path'"):
        list_images(NAME, folder)


def test_a_class_for_training_and_for_testing_is_refused(folder):
    path = folder / "Ebay_test.txt"
    path.write_text(path.read_text().replace(" 11330 ", " 1 ", 1))
    with pytest.raises(ValueError, match=r"lists 25 images of 12 classes \(train\)"):
        list_images(NAME, folder)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_list_is_refused(part, folder):
    (folder / f"Ebay_{part}.txt").write_text("")
    with pytest.raises(ValueError, match=r"lists 24 images of 12 classes .* has 48 images"):
        list_images(NAME, folder)
