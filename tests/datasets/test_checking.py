"""`dmlkit data`: what it says of folders that are whole, half there, or not there."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from dmlkit.datasets import READERS, checking
from dmlkit.datasets.checking import check_data, download
from tests.official_trees import make_tree


def said(name, root, **options):
    lines, state = check_data(name, root, **options)
    return "\n".join(lines), state


@pytest.fixture
def lists(tmp_path):
    """Own lists of two training and two test classes with two images each, all different."""
    for part, labels in (("train", (1, 2)), ("test", (3, 4))):
        lines = []
        for label in labels:
            for number in range(2):
                name = f"{label}-{number}.png"
                pixels = np.full((8, 8, 3), 10 * label + number, dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name)
                lines.append(f"{name} {label}\n")
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    return tmp_path


@pytest.mark.parametrize("name", ["cub200_2011", "in_shop", "omniglot"])
def test_a_whole_tree_is_right_and_each_part_is_as_its_source_says(name, tmp_path):
    make_tree(name, tmp_path)
    text, state = said(name, tmp_path)
    assert state == "whole"
    published = READERS[name].ABOUT.published
    assert text.count(", as generated") == len(published)
    assert "GENERATED" in text
    assert "classes both for training and for testing: 0" in text
    assert "unreadable images: 0" in text
    assert READERS[name].ABOUT.terms in text


@pytest.mark.parametrize("name", READERS)
def test_missing_data_come_with_where_to_get_them_how_to_unpack_and_terms(name, tmp_path):
    text, state = said(name, tmp_path / "absent")
    about = READERS[name].ABOUT
    assert state == "absent"
    for line in (about.where, about.unpack, about.terms, *(md5 for _, md5 in about.archives)):
        assert line in text


def test_a_part_of_a_data_set_is_not_right_and_both_counts_are_said(tmp_path):
    root = make_tree("cub200_2011", tmp_path)
    for name in ("images.txt", "image_class_labels.txt"):
        lines = (root / name).read_text().splitlines(keepends=True)
        (root / name).write_text("".join(lines[:-1]))
    text, state = said("cub200_2011", tmp_path)
    assert state == "broken"
    assert "test: 15 images of 4 classes; NOT as generated: 16 images of 4 classes" in text
    assert "train: 16 images of 4 classes, as generated" in text


def test_missing_images_are_counted_and_one_is_named(tmp_path):
    root = make_tree("cub200_2011", tmp_path)
    shutil.rmtree(sorted((root / "images").iterdir())[0])
    text, state = said("cub200_2011", tmp_path, quick=True)
    assert state == "broken"
    assert "MISSING: 4 listed images, e.g. images/001." in text


def test_every_unreadable_image_is_found_and_not_only_the_first(lists):
    (lists / "1-0.png").write_bytes(b"")
    (lists / "3-1.png").write_text("<html>404</html>")
    text, state = said("list_files", lists)
    assert state == "broken"
    assert "unreadable images: 2" in text
    assert "1-0.png" in text and "3-1.png" in text
    # Reading the lists alone does not open images.
    assert said("list_files", lists, quick=True)[1] == "whole"


@pytest.mark.parametrize(
    ("copy", "kind"),
    [
        ("1-1.png", "within a class"),
        ("2-0.png", "in two classes"),
        ("3-0.png", "in a training and a test class"),
    ],
)
def test_identical_images_are_found_and_where_they_are_is_said(lists, copy, kind):
    assert "duplicate images: 0" in said("list_files", lists)[0]
    shutil.copy(lists / "1-0.png", lists / copy)
    text, state = said("list_files", lists)
    assert state == "whole"  # the published sets have some, so it is said and not refused
    assert f"duplicate images {kind}: 1, e.g. 1-0.png = {copy}" in text


def test_classes_on_both_sides_are_not_usable(lists):
    with (lists / "test.txt").open("a") as file:
        file.write("1-0.png 1\n")
    text, state = said("list_files", lists)
    assert state == "broken"
    assert "NOT usable" in text and "classes both in train.txt and among the test images" in text


def test_a_downloaded_archive_is_compared_with_its_checksum(tmp_path, monkeypatch):
    (tmp_path / "CUB_200_2011.tgz").write_bytes(b"half")
    text, _ = said("cub200_2011", tmp_path)
    assert (
        f"CUB_200_2011.tgz is NOT the published archive (MD5 {hashlib.md5(b'half').hexdigest()}"
        in text
    )
    whole = (("CUB_200_2011.tgz", hashlib.md5(b"half").hexdigest()),)
    about = READERS["cub200_2011"].ABOUT
    monkeypatch.setattr(
        READERS["cub200_2011"], "ABOUT", type(about)(**vars(about) | {"archives": whole})
    )
    assert "CUB_200_2011.tgz is whole" in said("cub200_2011", tmp_path)[0]


def test_only_what_may_be_downloaded_is(tmp_path):
    with pytest.raises(ValueError, match="only Omniglot may be downloaded.*dmlkit data NAME"):
        download(["cars196"], tmp_path)


@pytest.mark.parametrize("error", [RuntimeError("File not found or corrupted"), OSError("no host")])
def test_a_failed_download_is_one_sentence(error, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(checking, "Omniglot", fail)
    with pytest.raises(OSError, match=f"download failed .{error}.; .*get the archives by hand"):
        download(["omniglot"], tmp_path)


def test_the_command_says_what_is_there_and_fails_only_if_something_is_not_whole(
    lists, tmp_path, run_dmlkit
):
    make_tree("cub200_2011", tmp_path)
    finished = run_dmlkit("data", "--data-dir", tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "cub200_2011: Caltech" in finished.stdout
    assert "cars196: Cars-196" in finished.stdout and "not found" in finished.stdout
    (tmp_path / "CUB_200_2011" / "images.txt").unlink()
    assert run_dmlkit("data", "--data-dir", tmp_path, "--quick").returncode == 1
    assert run_dmlkit("data", "cars196", "--data-dir", tmp_path).returncode == 1
    unknown = run_dmlkit("data", "imagenet")
    assert unknown.returncode == 2 and "there is no data set 'imagenet'" in unknown.stderr
