"""CompCars: folders of makes, models and years, and a part of middling size."""

import numpy as np
import pytest

from dmlkit.datasets import list_images
from dmlkit.datasets.readers import compcars
from dmlkit.datasets.readers.compcars import ABOUT, filter_sizes, select_images
from dmlkit.datasets.readers.listing import Listing
from tests.official_trees import LAYOUTS, make_tree


@pytest.fixture(params=LAYOUTS["compcars"])
def folder(request, tmp_path):
    return make_tree("compcars", tmp_path, num_classes=24, layout=request.param)


def test_the_counts_are_the_published_ones():
    assert ABOUT.published == {"all": (136726, 1716)}


def test_a_class_is_a_model_whatever_its_year_in_the_order_of_the_numbers(folder):
    listing = compcars.list_images(folder)
    models = [tuple(map(int, file.split("/")[-4:-2])) for file in listing.files]
    ordered = sorted(set(models))
    assert ordered[0] == (9, 9) and ordered[-1] == (10, 32)
    assert listing.labels.tolist() == [ordered.index(model) for model in models]
    assert listing.num_train == 12
    years = {
        file.split("/")[-2] for file, c in zip(listing.files, listing.labels, strict=True) if c == 0
    }
    assert years == {"2013", "2014"}


def test_two_models_of_one_number_and_different_makes_are_two_classes(tmp_path):
    folder = make_tree("compcars", tmp_path)
    (folder / "data/image/10/13").rename(folder / "data/image/10/9")
    assert list_images("compcars", folder).counts()["all"] == (32, 8)


def test_a_year_need_not_be_known(folder):
    place = next(folder.rglob("2014"))
    place.rename(place.with_name("unknown"))
    assert list_images("compcars", folder).counts()["all"] == (96, 24)


def test_a_missing_folder_of_images_is_named(folder):
    next(folder.rglob("image")).rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="there is no image or data/image in it"):
        list_images("compcars", folder)


def listing_of(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = tuple(f"model {label}" for label in range(len(sizes)))
    return Listing("data", [f"{n}.jpg" for n in range(len(labels))], labels, names, len(sizes) // 2)


def test_slade_used_145_classes_and_16537_images():
    assert (compcars.SLADE_CLASSES, compcars.SLADE_IMAGES) == (145, 16537)


def test_the_selection_is_of_middling_size_and_keeps_whole_classes():
    # 145 models of 114 or 115 images, and others that are much smaller and much larger.
    sizes = np.array([3] * 40 + [114] * 138 + [115] * 7 + [900] * 10)
    sizes = np.random.default_rng(0).permutation(sizes)
    listing = listing_of(sizes)
    selected = select_images(listing)
    assert selected.counts()["all"] == (16537, 145)
    kept = np.flatnonzero((sizes >= 114) & (sizes <= 115))
    assert selected.class_names == tuple(f"model {label}" for label in kept)
    assert np.bincount(selected.labels).tolist() == sizes[kept].tolist()
    assert selected.num_train == (kept < len(sizes) // 2).sum()


def test_classes_on_either_bound_are_kept():
    selected = filter_sizes(listing_of([1, 2, 3, 4, 5]), 3, 9)
    assert selected.class_names == ("model 1", "model 2", "model 3")


def test_only_the_selection_is_used(tmp_path, monkeypatch):
    folder = make_tree("compcars", tmp_path)
    for picture in sorted((folder / "data/image/9/9").rglob("*.jpg"))[:2]:
        picture.unlink()
    (folder / "generated_tree.json").write_text('{"all": [30, 8]}')
    monkeypatch.setattr(compcars, "SLADE_CLASSES", 7)
    monkeypatch.setattr(compcars, "SLADE_IMAGES", 28)
    assert len(compcars.list_images(folder).files) == 30
    assert list_images("compcars", folder).counts()["all"] == (28, 7)
