"""Listings and their guard: what all readers share, on trees that are made here."""

import itertools
import json
import os
import re

import numpy as np
import pytest

from dmlkit.datasets import READERS, list_images
from dmlkit.datasets.decoding import fingerprint
from dmlkit.datasets.readers.listing import (
    GENERATED,
    About,
    Listing,
    check_counts,
    expected_counts,
    find_root,
    make_listing,
    nearest_filter,
    read_lines,
    read_pairs,
)
from dmlkit.paths import PROJECT_ROOT
from tests.official_trees import LAYOUTS, OFFICIAL, class_shown, make_tree

TREES = [(name, layout) for name in OFFICIAL for layout in LAYOUTS.get(name, ("",))]
# Where the folders alone say what there is, one that is missing is noticed by the counts.
BY_FOLDER = ("cub200_2010", "compcars", "omniglot")
ABOUT = About(
    title="birds",
    published={"all": (4, 2)},
    folders=("Birds", "BIRDS"),
    needed=("birds.txt", "lists/birds.txt"),
    where="there",
    unpack="it",
    terms="none",
)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=TREES, ids="-".join)
def tree(request, tmp_path):
    """The name of a data set and the folder of a tiny tree in its layout."""
    name, layout = request.param
    return name, make_tree(
        name, tmp_path / "data", layout=layout, num_classes=24, images_per_class=2
    )


def pictures(folder):
    """All pictures of a tree, in any case of letters."""
    suffixes = (".jpg", ".jpeg", ".png")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes)


def same(one, other):
    """Whether two listings say the same."""
    return (
        one.files == other.files
        and one.labels.tolist() == other.labels.tolist()
        and one.class_names == other.class_names
        and one.num_train == other.num_train
    )


# Every data set


def test_every_picture_is_listed_once_with_the_class_that_it_shows(tree):
    name, folder = tree
    listing = READERS[name].list_images(folder)
    labels = listing.labels.tolist()
    assert listing.root == folder and listing.is_generated
    assert listing.labels.dtype == np.int64 and listing.num_train == 12
    assert len(set(listing.files)) == 24 * 2 and len(listing.class_names) == 24
    if name == "omniglot":
        return  # its drawings have no colours, and its archives no files
    assert {folder / file for file in listing.files} == set(pictures(folder))
    assert labels == [class_shown(folder / file) for file in listing.files]


def test_a_folder_and_the_folder_that_holds_it_are_read_alike(tree):
    name, folder = tree
    listing = list_images(name, folder)
    assert same(listing, list_images(name, folder.parent))
    if folder.name == name:
        return
    # Unpacked below a folder that is called as here, such as data/omniglot/omniglot-py.
    (folder.parent / name).mkdir()
    moved = folder.rename(folder.parent / name / folder.name)
    assert list_images(name, folder.parent).root == moved


def test_a_relative_folder_is_below_the_project_wherever_one_works(tree, monkeypatch, tmp_path):
    name, folder = tree
    monkeypatch.chdir(tmp_path)
    assert list_images(name, os.path.relpath(folder, PROJECT_ROOT)).counts()["all"][1] == 24


# All layouts whose lists need no pictures; a tree of CompCars would take a while.
FULL_TREES = [tree for tree in TREES if tree[0] not in (*BY_FOLDER, "fashion200k")]


@pytest.mark.parametrize(("name", "layout"), [*FULL_TREES, ("cub200_2010", ""), ("omniglot", "")])
def test_the_official_numbers_pass_the_guard(name, layout, tmp_path):
    pictures = name in BY_FOLDER
    folder = make_tree(name, tmp_path, layout=layout, full=True, pictures=pictures)
    listing = list_images(name, folder)
    counts = listing.counts()
    assert {part: counts[part] for part in OFFICIAL[name]} == OFFICIAL[name]
    assert READERS[name].ABOUT.published.items() <= counts.items()
    assert len(set(listing.files)) == len(listing.files) == counts["all"][0]
    assert not listing.is_generated


def test_the_published_counts_are_all_that_is_known_of_a_data_set():
    for name, parts in OFFICIAL.items():
        expected = {} if name == "fashion200k" else {"all", *parts}
        assert READERS[name].ABOUT.published.keys() == {*expected}, name


@pytest.mark.parametrize("name", OFFICIAL)
def test_what_lies_on_this_machine_follows_the_protocol(name):
    try:
        folder = find_root(name, READERS[name].ABOUT, PROJECT_ROOT / "data")
    except FileNotFoundError:
        pytest.skip(f"there is no {name} in data/")
    listing = list_images(name, PROJECT_ROOT / "data")
    assert listing.root == folder
    for file in listing.files:
        assert ".zip/" in file or (folder / file).stat().st_size, file


def test_a_tiny_tree_without_its_mark_is_not_taken_for_the_data_set(tree, capsys):
    name, folder = tree
    (folder / GENERATED).unlink()
    if name == "fashion200k":  # nothing is published about it
        assert not list_images(name, folder).is_generated
        return
    images, classes = READERS[name].ABOUT.published["all"]
    if name == "compcars":  # its numbers are only reported, and no protocol rests on them
        list_images(name, folder)
        said = "lists 48 images of 24 classes; reported are 136,726 images of 1,716 classes"
        assert said in capsys.readouterr().out
        return
    with pytest.raises(ValueError, match=f"48 images of 24 .*{images:,} images of {classes:,} cl"):
        list_images(name, folder)


def test_a_list_of_other_length_is_refused_with_both_counts_and_a_remedy(tree):
    name, folder = tree
    (folder / GENERATED).write_text(json.dumps({"all": [49, 24]}))
    expected = (
        f"{name} in {folder} lists 48 images of 24 classes (all), but the published protocol has "
        "49 images of 24 classes; download and unpack it again, or read your own selection with "
        "DATASET=list_files or class_folder"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        list_images(name, folder)


@pytest.mark.parametrize("tree", [t for t in TREES if t[0] not in BY_FOLDER], indirect=True)
def test_images_that_are_listed_and_not_there_are_counted_and_one_is_named(tree):
    name, folder = tree
    file = list_images(name, folder).files[7]
    (folder / file).unlink()
    message = f"1 of 48 listed images are missing below {folder}, e.g. {file}; unpack"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        fingerprint(list_images(name, folder))

    for picture in pictures(folder):
        picture.unlink()
    with pytest.raises(FileNotFoundError, match=r"^48 of 48 listed images are missing below"):
        fingerprint(list_images(name, folder))


@pytest.mark.parametrize("name", BY_FOLDER)
def test_images_that_are_not_there_are_missed_where_there_is_no_list(name, tmp_path):
    folder = make_tree(name, tmp_path, layout="folders" if name == "omniglot" else "")
    pictures(folder)[0].unlink()
    with pytest.raises(ValueError, match=r"lists 31 images of 8 classes .* has 32 images of 8"):
        list_images(name, folder)


def test_stray_files_beside_the_images_are_ignored(tree):
    name, folder = tree
    before = list_images(name, folder)
    for place in {picture.parent for picture in pictures(folder)}:
        for picture in pictures(place)[:1]:
            (place / f"._{picture.name}").write_bytes(b"resource fork of macOS")
        (place / ".DS_Store").write_bytes(b"finder")
        (place / "Thumbs.db").write_bytes(b"thumbnails")
    (folder / ".hidden").mkdir()
    assert same(list_images(name, folder), before)


def test_lists_with_line_ends_of_windows_and_a_mark_of_their_encoding_read_the_same(tree):
    name, folder = tree
    before = list_images(name, folder)
    for path in [*folder.rglob("*.txt"), *folder.rglob("*.csv")]:
        text = path.read_text().replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\r\n")
    assert same(list_images(name, folder), before)


def test_a_folder_that_nobody_may_write_to_is_enough(tree):
    name, folder = tree
    everything = [folder.parent, *folder.parent.rglob("*")]
    before = [(path, path.stat().st_mtime_ns) for path in everything]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        fingerprint(list_images(name, folder))
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
    # An administrator may write anywhere, so see as well that nothing was.
    everything = [folder.parent, *folder.parent.rglob("*")]
    assert [(path, path.stat().st_mtime_ns) for path in everything] == before


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_folder_that_is_not_there_is_named_with_what_to_do(name, tmp_path):
    message = f"there is no folder {tmp_path}/absent; set DATA_DIR to the folder that holds {name}"
    with pytest.raises(
        FileNotFoundError, match=f"^{re.escape(message)}, or run `dmlkit data {name}"
    ):
        list_images(name, tmp_path / "absent")


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_folder_of_something_else_is_refused_with_what_is_missing(name, tmp_path):
    (tmp_path / "notes.txt").write_text("1 2\n")
    about = READERS[name].ABOUT
    with pytest.raises(FileNotFoundError) as error:
        list_images(name, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path} does not hold {name}: there is no {about.needed[0]}")
    assert message.endswith(f"run `dmlkit data {name}` to see where to get it and how to unpack it")
    assert name in message.split("folder ")[1]


@pytest.mark.parametrize("name", OFFICIAL)
def test_all_data_sets_may_lie_side_by_side(name, tmp_path):
    for other in OFFICIAL:
        make_tree(other, tmp_path, num_classes=4 + 2 * (other == name))
    assert list_images(name, tmp_path).counts()["all"] == (24, 6)


# Listing


def birds(**more):
    """Three training and three test classes of 1 to 6 images, mixed."""
    labels = np.array([5, 1, 0, 2, 1, 2, 3, 4, 5, 4, 2, 3, 3, 3, 4, 5, 4, 5, 4, 5, 5])
    files = [f"{row}.jpg" for row in range(len(labels))]
    return Listing("data", files, labels, tuple("abcdef"), 3, **more)


def test_counts_are_of_images_and_of_classes_that_have_some():
    listing = birds()
    assert listing.counts() == {"all": (21, 6), "train": (6, 3), "test": (15, 3)}
    is_gallery = np.arange(21) % 3 == 0
    parts = birds(is_gallery=is_gallery).counts()
    assert parts["query"][0] + parts["gallery"][0] == 15
    assert parts["gallery"] == (int((is_gallery & (listing.labels >= 3)).sum()), 3)


@pytest.mark.parametrize(
    ("max_classes", "names"), [(0, "abcdef"), (4, "abde"), (6, "abcdef"), (99, "abcdef")]
)
def test_limited_keeps_the_first_classes_of_both_halves(max_classes, names):
    listing = birds(groups=np.arange(6) * 10)
    kept = listing.limited(max_classes, 0)
    assert kept.class_names == tuple(names)
    assert kept.num_train == len(names) // 2
    assert kept.groups.tolist() == [10 * "abcdef".index(name) for name in names]
    # Each image that is left has the class that it had.
    had = {f: listing.class_names[c] for f, c in zip(listing.files, listing.labels, strict=True)}
    assert all(had[f] == kept.class_names[c] for f, c in zip(kept.files, kept.labels, strict=True))
    assert len(kept.files) == sum(had[file] in names for file in listing.files)


@pytest.mark.parametrize("most", [1, 2, 3, 99])
def test_limited_keeps_the_first_images_of_each_class_in_order(most):
    listing = birds()
    kept = listing.limited(0, most)
    expected = [
        file
        for row, file in enumerate(listing.files)
        if (listing.labels[:row] == listing.labels[row]).sum() < most
    ]
    assert kept.files == expected
    assert kept.class_names == listing.class_names and kept.num_train == 3


def test_limited_counts_queries_and_gallery_apart():
    is_gallery = np.arange(21) % 2 == 0
    kept = birds(is_gallery=is_gallery).limited(4, 1)
    # 'd' and 'e' keep one of each; 'a' and 'b' have what roles their images happen to have.
    of_test = kept.labels >= kept.num_train
    assert sorted(zip(kept.labels[of_test], kept.is_gallery[of_test], strict=True)) == [
        (2, False),
        (2, True),
        (3, False),
        (3, True),
    ]


def test_limited_takes_what_there_is_of_the_smaller_half():
    listing = Listing("data", list("abcde"), np.arange(5), tuple("abcde"), 1)
    kept = listing.limited(4, 0)
    assert kept.class_names == ("a", "b", "c") and kept.num_train == 1


def test_keeping_classes_numbers_them_anew():
    kept = birds(groups=np.array([0, 0, 1, 1, 2, 2])).keep_classes(np.array([1, 2, 5]))
    assert kept.class_names == ("b", "c", "f") and kept.num_train == 2
    assert kept.labels.tolist() == [2, 0, 1, 0, 1, 2, 1, 2, 2, 2, 2]
    assert kept.files[:3] == ["0.jpg", "1.jpg", "3.jpg"]
    assert kept.groups.tolist() == [0, 1, 2]
    assert len(kept.files) == len(kept.labels)


def test_classes_are_numbered_in_the_order_of_their_ids(tmp_path):
    listing = make_listing(tmp_path, list("wxyz"), [10, 9, 100, 9], 2, {9: "nine", 100: "hundred"})
    assert listing.class_names == ("nine", "10", "hundred")
    assert listing.labels.tolist() == [1, 0, 2, 0]
    assert not listing.is_generated


# The guard and the folder


@pytest.mark.parametrize("part", ["all", "train", "test", "query", "gallery"])
def test_each_part_is_checked(part, tmp_path):
    listing = make_listing(
        tmp_path, list("abcd"), [0, 1, 1, 1], 1, {}, is_gallery=np.array([0, 0, 1, 0], dtype=bool)
    )
    right = {"all": (4, 2), "train": (1, 1), "test": (3, 1), "query": (2, 1), "gallery": (1, 1)}
    about = About(**vars(ABOUT) | {"published": right})
    check_counts("birds", about, listing)
    for wrong in ((right[part][0] + 1, right[part][1]), (right[part][0], right[part][1] + 1)):
        about = About(**vars(ABOUT) | {"published": right | {part: wrong}})
        with pytest.raises(ValueError, match=rf"classes \({part}\), but the published"):
            check_counts("birds", about, listing)


def test_a_generated_tree_is_held_to_the_counts_of_its_generator(tmp_path):
    assert expected_counts(ABOUT, tmp_path) == {"all": (4, 2)}
    (tmp_path / GENERATED).write_text('{"all": [6, 3]}')
    assert expected_counts(ABOUT, tmp_path) == {"all": (6, 3)}
    assert make_listing(tmp_path, ["a"], [0], 1, {}).is_generated


@pytest.mark.parametrize("folder", [".", "birds", "Birds", "BIRDS", "birds/Birds", "birds/BIRDS"])
@pytest.mark.parametrize("needed", ABOUT.needed)
def test_a_root_is_found_by_what_is_needed(folder, needed, tmp_path):
    (tmp_path / folder / needed).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / needed).touch()
    assert find_root("birds", ABOUT, tmp_path) == tmp_path / folder


def test_the_given_folder_comes_before_those_below_it(tmp_path):
    (tmp_path / "Birds").mkdir()
    (tmp_path / "Birds" / "birds.txt").touch()
    assert find_root("birds", ABOUT, tmp_path) == tmp_path / "Birds"
    (tmp_path / "birds.txt").touch()
    assert find_root("birds", ABOUT, tmp_path) == tmp_path


# Lists


def test_lines_keep_names_of_any_encoding_and_drop_empty_ones(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf1 B\xe4r.jpg\r\n\n  \n2 \xe9\xb3\xa5.jpg  \n")
    first, second = read_lines(path)
    assert os.fsencode(first) == b"1 B\xe4r.jpg"
    assert second == "2 鳥.jpg"


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"list\.txt is missing; unpack the data set again$"
    ):
        read_lines(tmp_path / "list.txt")


def test_pairs_are_split_at_the_first_space_alone(tmp_path):
    (tmp_path / "list.txt").write_text("1 a b/c d.jpg\n2\tx.jpg\n")
    assert read_pairs(tmp_path / "list.txt") == {"1": "a b/c d.jpg", "2": "x.jpg"}


@pytest.mark.parametrize("line", ["17", "<html>"])
def test_a_line_without_a_value_is_refused(line, tmp_path):
    (tmp_path / "list.txt").write_text(f"1 a.jpg\n{line}\n")
    with pytest.raises(ValueError, match=r"list\.txt has a line that is not an id followed by"):
        read_pairs(tmp_path / "list.txt")


# The selection by size


def brute_force(sizes, num_classes, num_images):
    """The least difference that any range of class sizes has from the totals."""
    best = np.inf
    for low, high in itertools.product(sorted(set(sizes)), repeat=2):
        kept = [size for size in sizes if low <= size <= high]
        if kept:
            best = min(best, difference(kept, num_classes, num_images))
    return best


def difference(kept, num_classes, num_images):
    return abs(len(kept) - num_classes) / num_classes + abs(sum(kept) - num_images) / num_images


@pytest.mark.parametrize("seed", range(20))
def test_the_filter_comes_as_near_as_any_range_of_sizes(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 30, size=40)
    num_classes, num_images = int(random.integers(1, 40)), int(random.integers(1, 600))
    low, high = nearest_filter(sizes, num_classes, num_images)
    kept = sizes[(sizes >= low) & (sizes <= high)].tolist()
    found = difference(kept, num_classes, num_images)
    assert found == pytest.approx(brute_force(sizes.tolist(), num_classes, num_images))


def test_the_filter_finds_a_selection_that_fits():
    assert nearest_filter(np.array([1, 2, 5, 6, 7, 7, 90]), 4, 25) == (5, 7)
    assert nearest_filter(np.array([4, 4, 4]), 1, 1) == (4, 4)  # all or none of a size


@pytest.mark.parametrize("max_classes", [1, 2, 3])
def test_fewer_classes_than_two_halves_of_two_are_refused(max_classes):
    with pytest.raises(ValueError, match=f"MAX_CLASSES={max_classes} leaves .*; use 4 or more"):
        birds().limited(max_classes, 0)
