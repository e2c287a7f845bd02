"""In-Shop: one list of training images, queries and a gallery."""

import pytest

from dmlkit.datasets import list_images
from dmlkit.datasets.readers.in_shop import ABOUT
from tests.official_trees import LAYOUTS, make_tree


@pytest.fixture(params=LAYOUTS["in_shop"])
def folder(request, tmp_path):
    """Items of five images: of those for testing three are queries and two gallery."""
    return make_tree("in_shop", tmp_path, num_classes=24, images_per_class=5, layout=request.param)


def partition(folder):
    """The list, wherever it is."""
    return next(folder.rglob("list_eval_partition.txt"))


def rows_of(folder):
    return [line.split() for line in partition(folder).read_text().splitlines()[2:]]


def append(folder, line):
    partition(folder).write_text(partition(folder).read_text() + line + "\n")


def test_the_protocol_is_the_published_one():
    train, query, gallery = (25882, 3997), (14218, 3985), (12612, 3985)
    everything = {"all": (52712, 7982), "train": train, "query": query, "gallery": gallery}
    assert ABOUT.published == everything


def test_the_list_is_as_long_as_its_first_line_says(folder):
    listing = list_images("in_shop", folder)
    assert len(listing.files) == int(partition(folder).read_text().split()[0]) == 120
    assert listing.files == [file for file, *_ in rows_of(folder)]


def test_training_items_come_first_and_each_half_in_the_order_of_its_items(folder):
    listing = list_images("in_shop", folder)
    odd, even = range(1, 25, 2), range(2, 25, 2)
    assert listing.class_names == tuple(f"id_{item:08d}" for item in (*odd, *even))
    assert listing.num_train == 12
    names = [listing.class_names[label] for label in listing.labels]
    assert names == [item for _, item, _ in rows_of(folder)]


def test_queries_and_gallery_are_what_the_list_says_and_share_their_items(folder):
    listing = list_images("in_shop", folder)
    status = [status for *_, status in rows_of(folder)]
    assert listing.is_gallery.tolist() == [s == "gallery" for s in status]
    assert (listing.labels < 12).tolist() == [s == "train" for s in status]
    assert listing.counts()["query"] == (36, 12)
    assert listing.counts()["gallery"] == (24, 12)


def test_an_item_of_one_image_may_train(folder):
    listing = list_images("in_shop", folder)
    assert (listing.labels == 0).sum() == 1


def test_the_list_in_its_own_folder_goes_before_one_beside_it(tmp_path):
    folder = make_tree("in_shop", tmp_path)
    (folder / "list_eval_partition.txt").write_text("0\nimage_name item_id evaluation_status\n")
    assert len(list_images("in_shop", folder).files) == 32


def test_a_missing_list_is_named(folder):
    partition(folder).unlink()
    with pytest.raises(FileNotFoundError, match=r"no Eval/list_eval_partition\.txt or list_eval_"):
        list_images("in_shop", folder)


@pytest.mark.parametrize("line", ["img/a.jpg id_1", "img/a.jpg id_1 val", "img/a.jpg id_1 train 1"])
def test_a_line_of_another_form_is_refused(line, folder):
    append(folder, line)
    message = r"list_eval_partition\.txt has a line that is not 'image item part'; download"
    with pytest.raises(ValueError, match=message):
        list_images("in_shop", folder)


@pytest.mark.parametrize("status", ["query", "gallery"])
def test_an_item_for_training_and_for_testing_is_refused_by_name(status, folder):
    append(folder, f"img/MEN/Denim/id_00000003/09_1_front.jpg id_00000003 {status}")
    message = "1 items both for training and for testing, e.g. id_00000003; download it again"
    with pytest.raises(ValueError, match=message):
        list_images("in_shop", folder)


def test_an_empty_list_is_refused(folder):
    partition(folder).write_text("")
    with pytest.raises(ValueError, match=r"lists 0 images of 0 classes .* has 120 images of 24"):
        list_images("in_shop", folder)


def test_half_a_list_is_refused(folder):
    lines = partition(folder).read_text().splitlines()
    partition(folder).write_text("\n".join(lines[:60]))
    with pytest.raises(ValueError, match=r"lists 58 images of .* protocol has 120 images of 24"):
        list_images("in_shop", folder)
