"""Fashion200k: an item is a description in a category."""

import numpy as np
import pytest

from dmlkit.datasets import list_images
from dmlkit.datasets.readers import fashion200k
from dmlkit.datasets.readers.fashion200k import ABOUT
from tests.official_trees import make_tree


@pytest.fixture
def folder(tmp_path):
    return make_tree("fashion200k", tmp_path, num_classes=20)


def label_files(folder):
    return sorted((folder / "labels").glob("*_detect_all.txt"))


def rows_of(folder):
    lines = [line for path in label_files(folder) for line in path.read_text().splitlines()]
    return {file: text for file, _, text in (line.split("\t") for line in lines)}


def append(folder, line, kind="dress_train"):
    path = folder / "labels" / f"{kind}_detect_all.txt"
    path.write_text(path.read_text() + line + "\n")


def test_no_exact_counts_are_published():
    assert ABOUT.published == {}


def test_both_lists_of_all_kinds_are_read(folder):
    assert len(label_files(folder)) == 10
    listing = list_images("fashion200k", folder)
    assert sorted(listing.files) == sorted(rows_of(folder))
    assert listing.counts()["all"] == (80, 20)
    assert listing.num_train == 10


def test_a_class_is_a_description_of_both_lists_and_of_several_products(folder):
    listing, texts = list_images("fashion200k", folder), rows_of(folder)
    for label in range(20):
        own = [f for f, c in zip(listing.files, listing.labels, strict=True) if c == label]
        assert len({texts[file] for file in own}) == 1
        assert len({file.split("/")[3] for file in own}) == 4
        assert texts[own[0]] in listing.class_names[label]


def test_one_description_in_two_categories_is_two_classes(folder):
    text = next(iter(rows_of(folder).values()))
    for category, kind in (("dresses", "dress"), ("tops", "top")):
        file = f"women/{category}/evening/1/1_0.jpeg"
        append(folder, f"{file}\t-0.5\t{text}", f"{kind}_train")
    listing = fashion200k.list_images(folder)
    assert listing.counts()["all"] == (82, 21)
    assert sorted(np.bincount(listing.labels))[0] == 1
    assert sorted(np.bincount(listing.labels))[-1] == 5


def test_images_without_a_description_are_left_out(folder):
    append(folder, "women/dresses/evening/1/1_0.jpeg\t-0.5\t")
    assert fashion200k.list_images(folder).counts()["all"] == (80, 20)


def test_the_order_of_the_lines_does_not_matter(folder):
    before = list_images("fashion200k", folder)
    for path in label_files(folder):
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    after = list_images("fashion200k", folder)
    assert after.files == before.files
    assert after.labels.tolist() == before.labels.tolist()


def test_missing_labels_are_named(folder):
    for path in label_files(folder):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"labels holds no \*_detect_all\.txt; run `dmlkit"):
        list_images("fashion200k", folder)
    (folder / "labels").rmdir()
    with pytest.raises(FileNotFoundError, match="there is no labels in it"):
        list_images("fashion200k", folder)


def test_slade_used_1045_items_and_14635_images():
    assert (fashion200k.SLADE_CLASSES, fashion200k.SLADE_IMAGES) == (1045, 14635)


def test_only_the_selection_is_used(folder, monkeypatch):
    texts = rows_of(folder)
    append(folder, f"women/dresses/evening/1/1_0.jpeg\t-0.5\t{next(iter(texts.values()))}")
    (folder / "generated_tree.json").write_text('{"all": [81, 20]}')
    monkeypatch.setattr(fashion200k, "SLADE_CLASSES", 19)
    monkeypatch.setattr(fashion200k, "SLADE_IMAGES", 76)
    assert list_images("fashion200k", folder).counts()["all"] == (76, 19)
