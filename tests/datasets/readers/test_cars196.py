"""Cars-196 in its three layouts: both lists of each are united before classes are split."""

import csv

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from dmlkit.datasets import list_images
from dmlkit.datasets.readers.cars196 import ABOUT
from tests.official_trees import LAYOUTS, make_tree

TEST_LABELS = "cars_test_annos_withlabels.mat"


def make(layout, root, **size):
    return make_tree("cars196", root, layout=layout, **size)


def test_the_protocol_is_the_published_one():
    assert ABOUT.published == {"all": (16185, 196), "train": (8054, 98), "test": (8131, 98)}


@pytest.mark.parametrize("layout", LAYOUTS["cars196"])
def test_classes_are_in_the_order_of_their_numbers_and_the_first_98_train(layout, tmp_path):
    listing = list_images("cars196", make(layout, tmp_path, num_classes=24))
    numbers = [*range(1, 13), *range(99, 110)]
    names = [f"Make Model {n} Sedan 2012" for n in numbers]
    assert listing.class_names == (*names, "Ram C/V Cargo Van Minivan 2012")
    assert listing.num_train == 12


def test_class_98_trains_and_class_99_tests(tmp_path):
    listing = list_images("cars196", make("kaggle", tmp_path, full=True, pictures=False))
    assert listing.num_train == 98
    assert listing.class_names[97:99] == ("Make Model 98 Sedan 2012", "Make Model 99 Sedan 2012")


def test_the_layouts_agree(tmp_path):
    folders = [make(layout, tmp_path / layout) for layout in LAYOUTS["cars196"]]
    listings = [list_images("cars196", folder) for folder in folders]
    original, torchvision, kaggle = listings
    assert original.class_names == torchvision.class_names == kaggle.class_names
    assert np.bincount(original.labels).tolist() == np.bincount(kaggle.labels).tolist()
    assert torchvision.labels.tolist() == kaggle.labels.tolist()
    assert len({original.root.name, torchvision.root.name, kaggle.root.name}) == 2


@pytest.mark.parametrize("layout", ["torchvision", "kaggle"])
def test_each_class_has_images_of_both_lists(layout, tmp_path):
    listing = list_images("cars196", make(layout, tmp_path))
    folders = {"torchvision": ("cars_", "cars_"), "kaggle": ("car_data/car_data/",) * 2}[layout]
    for label in range(8):
        own = [f for f, c in zip(listing.files, listing.labels, strict=True) if c == label]
        assert sum(file.startswith(folders[0] + "train/") for file in own) == 2
        assert sum(file.startswith(folders[1] + "test/") for file in own) == 2


def test_the_original_test_flag_is_not_read(tmp_path):
    folder = make("original", tmp_path)
    flags = loadmat(folder / "cars_annos.mat", squeeze_me=True)["annotations"]["test"]
    assert {*flags.tolist()} == {0, 1}
    assert list_images("cars196", folder).counts()["all"] == (32, 8)


def test_a_slash_in_a_name_is_a_dash_in_its_folder(tmp_path):
    listing = list_images("cars196", make("kaggle", tmp_path))
    folders = {
        f.split("/")[3] for f, c in zip(listing.files, listing.labels, strict=True) if c == 7
    }
    assert folders == {"Ram C-V Cargo Van Minivan 2012"}
    assert all((listing.root / file).exists() for file in listing.files)


def test_names_with_commas_may_be_quoted_or_not(tmp_path):
    folder = make("kaggle", tmp_path)
    names = (folder / "names.csv").read_text().splitlines()
    names[:2] = ["Coupe, red", '"Coupe, blue"']
    (folder / "names.csv").write_text("\n".join(names))
    class_names = list_images("cars196", folder).class_names
    assert class_names[:3] == ("Coupe, red", "Coupe, blue", "Make Model 3 Sedan 2012")


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("torchvision", "devkit/cars_meta.mat"),
        ("torchvision", TEST_LABELS),
        ("kaggle", "names.csv"),
        ("kaggle", "anno_test.csv"),
    ],
)
def test_a_missing_annotation_file_is_named(layout, file, tmp_path):
    folder = make(layout, tmp_path)
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"{file} is missing"):
        list_images("cars196", folder)


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("original", "cars_annos.mat"),
        ("torchvision", "devkit/cars_train_annos.mat"),
        ("kaggle", "anno_train.csv"),
    ],
)
def test_without_its_first_list_no_layout_is_recognised(layout, file, tmp_path):
    folder = make(layout, tmp_path)
    (folder / file).unlink()
    needed = "cars_annos.mat or devkit/cars_train_annos.mat or anno_train.csv"
    with pytest.raises(FileNotFoundError, match=f"does not hold cars196: there is no {needed}"):
        list_images("cars196", folder)


def test_where_the_classes_of_the_test_images_are_is_said(tmp_path):
    folder = make("torchvision", tmp_path)
    (folder / TEST_LABELS).unlink()
    message = (
        f"{folder / TEST_LABELS} is missing; its classes are not in devkit/cars_test_annos.mat; "
        "run `dmlkit data cars196` to see where to get it"
    )
    with pytest.raises(FileNotFoundError) as error:
        list_images("cars196", folder)
    assert str(error.value) == message


def test_test_annotations_without_classes_in_their_place_are_refused(tmp_path):
    folder = make("torchvision", tmp_path)
    (folder / "devkit" / "cars_test_annos.mat").replace(folder / TEST_LABELS)
    with pytest.raises(
        ValueError, match=f"{TEST_LABELS} cannot be read .*class.*download it again"
    ):
        list_images("cars196", folder)


@pytest.mark.parametrize("size", [0, 50, 200, 1000])
@pytest.mark.parametrize(
    ("layout", "file"),
    [("original", "cars_annos.mat"), ("torchvision", TEST_LABELS)],
    ids=["original", "torchvision"],
)
def test_half_a_matlab_file_is_refused(layout, file, size, tmp_path):
    folder = make(layout, tmp_path)
    (folder / file).write_bytes((folder / file).read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{file} cannot be read .*; download it again"):
        list_images("cars196", folder)


def test_a_page_of_the_web_instead_of_a_matlab_file_is_refused(tmp_path):
    folder = make("original", tmp_path)
    (folder / "cars_annos.mat").write_text("<!DOCTYPE html>\n<html><body>404 Not Found\n" * 20)
    with pytest.raises(ValueError, match=r"cars_annos\.mat cannot be read .*; download it again"):
        list_images("cars196", folder)


@pytest.mark.parametrize("number", ["0", "197", "x", ""])
def test_a_class_without_a_name_is_refused(number, tmp_path):
    folder = make("kaggle", tmp_path)
    with (folder / "anno_test.csv").open("a") as file:
        csv.writer(file).writerow(["99999.jpg", 1, 2, 3, 4, number])
    with pytest.raises(
        ValueError, match=rf"anno_test\.csv in .* class '{number}', but .* 196 names"
    ):
        list_images("cars196", folder)


def test_the_training_list_alone_is_refused(tmp_path):
    folder = make("kaggle", tmp_path)
    (folder / "anno_test.csv").write_text("")
    with pytest.raises(ValueError, match=r"lists 16 images of 8 classes .* has 32 images of 8"):
        list_images("cars196", folder)


@pytest.mark.parametrize("column", ["class", "relative_im_path"])
def test_annotations_of_another_type_are_refused(column, tmp_path):
    folder = make("original", tmp_path)
    content = loadmat(folder / "cars_annos.mat")
    content["annotations"][0, 3][column] = np.array([[]])
    savemat(folder / "cars_annos.mat", {k: v for k, v in content.items() if k[0] != "_"})
    with pytest.raises(ValueError, match=r"cars_annos\.mat cannot be read .*; download it again"):
        list_images("cars196", folder)
