"""CUB-200-2011: what its lists say, and what is refused."""

import pytest

from dmlkit.datasets import list_images
from dmlkit.datasets.readers.cub200_2011 import ABOUT
from tests.official_trees import make_tree


@pytest.fixture
def folder(tmp_path):
    return make_tree("cub200_2011", tmp_path, num_classes=24)


def test_the_protocol_is_the_published_one():
    assert ABOUT.published == {"all": (11788, 200), "train": (5864, 100), "test": (5924, 100)}


def test_classes_are_in_the_order_of_their_numbers_and_the_first_hundred_train(folder):
    listing = list_images("cub200_2011", folder)
    numbers = [*range(1, 13), *range(101, 113)]
    assert listing.class_names == tuple(f"{n:03d}.Bird_{n}" for n in numbers)
    assert listing.num_train == 12
    assert listing.is_gallery is None and listing.groups is None
    for file, label in zip(listing.files, listing.labels, strict=True):
        assert file.startswith(f"images/{listing.class_names[label]}/")


def test_class_100_trains_and_class_101_tests(tmp_path):
    folder = make_tree("cub200_2011", tmp_path, full=True, pictures=False)
    listing = list_images("cub200_2011", folder)
    assert listing.class_names[99:101] == ("100.Bird_100", "101.Bird_101")
    assert listing.num_train == 100


def test_the_split_of_images_within_classes_is_not_read(folder):
    before = list_images("cub200_2011", folder)
    (folder / "train_test_split.txt").unlink()
    assert list_images("cub200_2011", folder).files == before.files


def test_the_order_of_the_class_list_does_not_matter(folder):
    before = list_images("cub200_2011", folder)
    path = folder / "image_class_labels.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    after = list_images("cub200_2011", folder)
    assert after.files == before.files
    assert after.labels.tolist() == before.labels.tolist()


@pytest.mark.parametrize("file", ["images.txt", "classes.txt"])
def test_a_missing_list_is_named(file, folder):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing; unpack the data set again"):
        list_images("cub200_2011", folder)


def test_without_the_list_of_classes_the_folder_is_not_recognised(folder):
    (folder / "image_class_labels.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image_class_labels\.txt in it"):
        list_images("cub200_2011", folder)


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt"])
def test_lists_of_different_images_are_refused(file, folder):
    lines = (folder / file).read_text().splitlines()
    (folder / file).write_text("\n".join(lines[:-1]))
    with pytest.raises(
        ValueError, match=r"name different images \((95 and 96|96 and 95)\); unpack"
    ):
        list_images("cub200_2011", folder)


def test_a_list_that_ends_in_the_middle_of_a_line_is_refused(folder):
    path = folder / "image_class_labels.txt"
    path.write_text(path.read_text().rstrip().rpartition(" ")[0])
    with pytest.raises(ValueError, match=r"image_class_labels\.txt has a line that is not an id"):
        list_images("cub200_2011", folder)


def test_other_birds_in_the_same_layout_are_refused(tmp_path):
    other = make_tree("nabirds", tmp_path)
    (other / "generated_tree.json").unlink()
    with pytest.raises(ValueError, match=r"32 images of 8 classes \(all\).*11,788 images of 200"):
        list_images("cub200_2011", other)


@pytest.mark.parametrize("number", ["x", "-1", "9" * 5000])
@pytest.mark.parametrize("file", ["classes.txt", "image_class_labels.txt"])
def test_what_is_no_number_of_a_class_is_refused(file, number, folder):
    first, _, rest = (folder / file).read_text().partition("\n")
    line = f"{number} Bird" if file == "classes.txt" else f"{first.split()[0]} {number}"
    (folder / file).write_text(f"{line}\n{rest}")
    with pytest.raises(ValueError, match=f"{file} has .* in place of the number of a class"):
        list_images("cub200_2011", folder)
