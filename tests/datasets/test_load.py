"""Loading by name: what is asked for arrives, and no more than that is decoded."""

import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dmlkit.datasets import (
    DATASETS,
    PICTURES_MAY_BE_SHOWN,
    READERS,
    decoding,
    list_images,
    load,
    read_images,
    split_classes,
)
from dmlkit.datasets.decoding import ImagesOnDisk
from dmlkit.datasets.readers import class_folder
from dmlkit.datasets.readers.listing import GENERATED, About
from dmlkit.paths import PROJECT_ROOT
from tests.official_trees import make_tree

SIZE = 8


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of all caches, of this test alone."""
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    decoding._opened.cache_clear()


@pytest.fixture
def root(tmp_path):
    """Twenty class folders of three images, whose colours say their class and their number."""
    for label in range(20):
        folder = tmp_path / "birds" / f"species {label:02d}"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (6, 4 + number), (label, number, 0)).save(folder / f"{number}.png")
    return tmp_path / "birds"


@pytest.fixture
def other_root(tmp_path):
    """Two lists of four classes of two images each, whose colours say their class, from 100 on."""
    folder = tmp_path / "other"
    folder.mkdir()
    for part, labels in (("train", range(4)), ("test", range(4, 8))):
        lines = [f"{label}_{number}.png {label}" for label in labels for number in range(2)]
        (folder / f"{part}.txt").write_text("\n".join(lines))
        for line in lines:
            file, label = line.split()
            Image.new("RGB", (6, 4), (100 + int(label), int(file[2]), 0)).save(folder / file)
    return folder


def shown(part):
    """Return the classes and the numbers of images that their colours say."""
    colours = part.all_images()[:, :2, 4, 4].tolist()
    return [label for label, _ in colours], [number for _, number in colours]


@pytest.fixture
def decoded(monkeypatch):
    """The files read and decoded so far."""
    files = {"read": [], "decode": []}

    def watched(name, do):
        def watching(listing, row, *size):
            files[name].append(listing.files[row])
            return do(listing, row, *size)

        return watching

    for name in files:
        monkeypatch.setattr(decoding, name, watched(name, getattr(decoding, name)))
    return files


def test_images_and_labels_of_both_halves_arrive(root):
    splits = load("class_folder", root, image_size=SIZE)
    assert shown(splits.train)[0] == [label for label in range(10) for _ in range(3)]
    assert shown(splits.test)[0] == [label for label in range(10, 20) for _ in range(3)]
    assert shown(splits.test)[1] == [0, 1, 2] * 10
    assert splits.train.class_names == tuple(f"species {label:02d}" for label in range(10))
    assert splits.test.labels.tolist() == [label for label in range(10) for _ in range(3)]
    assert splits.train.images is splits.test.images
    assert splits.train.images.shape == (60, 3, SIZE, SIZE)
    assert splits.validation is splits.gallery is splits.unlabelled is None
    assert len(splits.train.fingerprint) == 64
    assert splits.train.factors == {}


def test_sizes_are_those_of_photographs_in_their_own_shape_or_none(root):
    positions = torch.tensor([0, 1, 2, 3])
    splits = load("class_folder", root, image_size=SIZE)
    assert splits.train.sizes_of(positions) is None
    splits = load("class_folder", root, image_size=SIZE, short_side=13)
    # 4 x 6, 5 x 6 and 6 x 6: the shorter side resized to 13, the other rounded down.
    expected = [[13, 19], [13, 15], [13, 13], [13, 19]]
    assert splits.train.sizes_of(positions).tolist() == expected
    assert splits.test.sizes_of(positions).tolist() == expected


@pytest.mark.parametrize(("selection", "held_out"), [("last", []), ("validation", [8, 9])])
def test_the_selection_holds_out_a_fifth_of_the_training_classes_or_none(selection, held_out, root):
    splits = load("class_folder", root, image_size=SIZE, selection=selection)
    validated = shown(splits.validation)[0] if splits.validation else []
    assert sorted(set(validated)) == held_out
    assert set(shown(splits.train)[0]) == set(range(10)) - set(held_out)


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "random", "seed": 3},
        {"protocol": "reality_check", "fold": 1},
        {"pool": "other_classes", "pool_share": 0.4},
        {"pool": "labelled_classes", "set_aside": 0.4, "seed": 2},
        {"pool": "test_classes", "set_aside": 0.4, "pool_share": 0.4},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_classes_are_split_as_asked_for(options, root):
    splits = load("class_folder", root, image_size=SIZE, **options)
    everything = read_images(class_folder.list_images(root), SIZE)
    expected = split_classes(everything, 10, **options)
    for name, part in vars(expected).items():
        found = getattr(splits, name)
        assert (found is None) == (part is None)
        if part is not None:
            assert found.index.tolist() == part.index.tolist()
            assert found.labels.tolist() == part.labels.tolist()
            assert found.class_names == part.class_names


def test_the_gallery_and_its_queries_arrive(tmp_path):
    folder = make_tree("in_shop", tmp_path, num_classes=6, images_per_class=4)
    splits = load("in_shop", tmp_path, image_size=SIZE)
    listing = list_images("in_shop", folder)
    assert listing.is_gallery.any()
    assert splits.gallery.index.tolist() == np.flatnonzero(listing.is_gallery).tolist()
    assert not set(splits.test.index.tolist()) & set(splits.gallery.index.tolist())
    assert splits.gallery.class_names == splits.test.class_names


def test_characters_of_an_alphabet_stay_together_in_random_splits(tmp_path):
    make_tree("omniglot", tmp_path, num_classes=40, images_per_class=2)
    for seed in range(3):
        splits = load("omniglot", tmp_path, image_size=SIZE, protocol="random", seed=seed)
        train, test = (
            {name.split("/")[0] for name in part.class_names}
            for part in (splits.train, splits.test)
        )
        assert not train & test
        assert splits.train.fingerprint.startswith("generated-")


def test_another_data_set_is_the_pool_with_all_of_its_classes(root, other_root):
    splits = load("class_folder", root, image_size=SIZE, pool="list_files", pool_root=other_root)
    assert shown(splits.unlabelled)[0] == [100 + label for label in range(8) for _ in range(2)]
    assert splits.unlabelled.num_classes == 8
    assert set(shown(splits.train)[0] + shown(splits.test)[0]) == set(range(20))
    assert splits.unlabelled.fingerprint != splits.train.fingerprint
    assert splits.unlabelled.sizes is None


def test_the_folder_of_the_pool_is_that_of_the_data_unless_it_is_named(other_root):
    make_tree("cub200_2010", other_root, num_classes=4, images_per_class=2)
    splits = load("cub200_2010", other_root, image_size=SIZE, pool="list_files")
    assert splits.unlabelled.num_classes == 8
    assert splits.train.num_classes == 2


def test_the_pool_keeps_the_shape_of_its_photographs_too(root, other_root):
    splits = load(
        "class_folder",
        root,
        image_size=SIZE,
        short_side=10,
        pool="list_files",
        pool_root=other_root,
    )
    assert splits.unlabelled.sizes_of(torch.tensor([0])).tolist() == [[10, 15]]


def test_only_what_the_limits_leave_is_read_and_decoded(root, other_root, decoded):
    how = {"image_size": SIZE, "max_classes": 4, "max_images_per_class": 2}
    splits = load("class_folder", root, **how)
    expected = [
        f"species {label:02d}/{number}.png" for label in (0, 1, 10, 11) for number in (0, 1)
    ]
    assert sorted(decoded["decode"]) == expected
    assert set(decoded["read"]) == set(expected)
    assert sorted(set(shown(splits.train)[0])) == [0, 1]
    assert sorted(set(shown(splits.test)[0])) == [10, 11]

    for files in decoded.values():
        files.clear()
    splits = load("class_folder", root, **how, pool="list_files", pool_root=other_root)
    assert sorted(decoded["decode"]) == [f"{c}_{n}.png" for c in (0, 1, 4, 5) for n in (0, 1)]
    assert sorted(set(shown(splits.unlabelled)[0])) == [100, 101, 104, 105]


def test_a_second_loading_decodes_nothing_and_is_the_same(root, decoded, capsys):
    first = load("class_folder", root, image_size=SIZE)
    count = {name: len(files) for name, files in decoded.items()}
    capsys.readouterr()
    again = load("class_folder", root, image_size=SIZE, protocol="random", seed=1)
    assert {name: len(files) for name, files in decoded.items()} == count
    assert torch.equal(first.train.images, again.train.images)
    assert first.train.fingerprint == again.train.fingerprint
    assert capsys.readouterr().out == ""


def test_splits_of_images_on_disk_are_those_of_cached_ones(root, monkeypatch, cache):
    cached = load("class_folder", root, image_size=SIZE, short_side=10)
    monkeypatch.setenv("DMLKIT_CACHE", str(cache / "small"))
    monkeypatch.setattr(decoding, "SPARE_BYTES", 2**62)
    on_disk = load("class_folder", root, image_size=SIZE, short_side=10)
    assert isinstance(on_disk.test.images, ImagesOnDisk)
    assert torch.equal(on_disk.test.all_images(), cached.test.all_images())
    positions = torch.tensor([3, 0, 29])
    assert torch.equal(on_disk.train.gather(positions), cached.train.gather(positions))
    assert torch.equal(on_disk.train.sizes_of(positions), cached.train.sizes_of(positions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "cub"},
            "DATASET='cub' is unknown; choose one of aviary, butterflies, cub200_2011",
        ),
        ({"selection": "best"}, "SELECTION='best' is unknown; choose validation or last"),
        ({"protocol": "half"}, "PROTOCOL='half' is unknown; choose official, random, reality_"),
        ({"fold": 4}, "FOLD=4 is unknown; choose 0 to 3"),
        ({"pool": "nabird"}, "POOL='nabird' is unknown; choose none, other_classes"),
        ({"pool": "other_classes"}, "needs POOL_SHARE above 0"),
        ({"pool": "test_classes"}, "needs SET_ASIDE above 0"),
        ({"max_classes": 2}, r"MAX_CLASSES=2 leaves fewer than two classes"),
    ],
)
def test_unknown_choices_are_refused_in_one_sentence(options, message, root):
    with pytest.raises(ValueError, match=message) as caught:
        load(**{"name": "class_folder", "root": root, "image_size": SIZE} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("choice", [{"pool": "typo"}, {"protocol": "typo"}, {"fold": 9}])
def test_unknown_choices_are_refused_before_anything_is_read(choice, root, decoded):
    with pytest.raises(ValueError, match="is unknown"):
        load("class_folder", root, image_size=SIZE, **choice)
    assert not decoded["read"]


@pytest.mark.parametrize("place", ["itself", "a link to it", "a folder around it"])
def test_a_data_set_is_not_its_own_pool_by_whatever_path(root, place, tmp_path, decoded):
    pool_root = {"itself": "", "a link to it": tmp_path / "link"}.get(place, root.parent)
    if place == "a link to it":
        pool_root.symlink_to(root)
    pool = "class_folder"
    if place == "a folder around it":
        pool = "list_files"
        for part, folder in zip(("train", "test"), sorted(root.iterdir()), strict=False):
            files = [
                f"{root.name}/{folder.name}/{p.name} {part == 'test':d}" for p in folder.iterdir()
            ]
            (root.parent / f"{part}.txt").write_text("\n".join(files))
    with pytest.raises(ValueError, match="POOL='.*' holds .* images of the data set itself, e.g. "):
        load("class_folder", root, image_size=SIZE, pool=pool, pool_root=pool_root)
    assert not decoded["decode"]


def test_the_fingerprint_of_the_splits_is_that_of_all_their_images(root, other_root):
    alone = load("class_folder", root, image_size=SIZE)
    assert alone.fingerprint == alone.train.fingerprint
    pool = {"pool": "list_files", "pool_root": other_root}
    both = load("class_folder", root, image_size=SIZE, **pool)
    assert both.fingerprint not in (both.train.fingerprint, both.unlabelled.fingerprint)
    assert load("class_folder", root, image_size=SIZE, **pool).fingerprint == both.fingerprint
    generated = replace(both.unlabelled, fingerprint="generated-0a")
    assert replace(both, unlabelled=generated).fingerprint.startswith("generated-")


def test_drawn_data_have_no_list_of_images():
    with pytest.raises(ValueError, match="DATASET='aviary' is unknown"):
        list_images("aviary", "data")


def test_relative_folders_are_below_the_project_wherever_the_process_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {PROJECT_ROOT}/data/absent;"):
        load("class_folder", "data/absent", image_size=SIZE)


def test_a_list_that_names_missing_images_is_refused(other_root):
    for name in ("1_0.png", "6_1.png"):
        (other_root / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"^2 of 16 listed images are missing .*1_0\.png"):
        load("list_files", other_root, image_size=SIZE)


def test_data_that_do_not_follow_the_published_protocol_are_not_loaded(tmp_path):
    folder = make_tree("cub200_2010", tmp_path, num_classes=4, images_per_class=2)
    (folder / GENERATED).unlink()
    with pytest.raises(ValueError, match="8 images of 4 classes .* published protocol has 6,033"):
        load("cub200_2010", tmp_path, image_size=SIZE)


def test_a_selection_of_images_is_made_after_the_guard(root, monkeypatch):
    about = About("", {"all": (60, 20)}, (), (), "", "", "")
    reader = SimpleNamespace(
        ABOUT=about,
        list_images=class_folder.list_images,
        select_images=lambda listing: listing.keep_classes(np.arange(5, 15)),
    )
    monkeypatch.setitem(READERS, "class_folder", reader)
    assert list_images("class_folder", root).class_names[0] == "species 05"
    os.remove(root / "species 00" / "0.png")
    with pytest.raises(ValueError, match="lists 59 images of 20 classes"):
        list_images("class_folder", root)


def test_pictures_of_known_data_sets_only_may_be_shown():
    assert set(DATASETS) > PICTURES_MAY_BE_SHOWN == {"aviary", "butterflies", "omniglot"}
