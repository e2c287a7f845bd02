"""Omniglot: characters of alphabets, in archives or folders."""

import zipfile

import pytest
from torchvision.datasets import Omniglot

from dmlkit.datasets import list_images
from dmlkit.datasets.decoding import fingerprint
from dmlkit.datasets.readers.omniglot import ABOUT
from dmlkit.paths import PROJECT_ROOT
from tests.official_trees import LAYOUTS, make_tree

ARCHIVES = ("images_background.zip", "images_evaluation.zip")


@pytest.fixture(params=LAYOUTS["omniglot"])
def folder(request, tmp_path):
    return make_tree("omniglot", tmp_path, num_classes=24, layout=request.param)


@pytest.fixture
def zips(tmp_path):
    return make_tree("omniglot", tmp_path, num_classes=24)


def test_the_protocol_is_the_published_one():
    assert ABOUT.published == {"all": (32460, 1623), "train": (19280, 964), "test": (13180, 659)}


def test_a_class_is_a_character_of_an_alphabet_and_the_background_trains(folder):
    listing = list_images("omniglot", folder)
    assert listing.num_train == 12
    assert len(set(listing.class_names)) == 24
    for file, label in zip(listing.files, listing.labels, strict=True):
        part, alphabet, character, _ = file.split("/")[-4:]
        assert listing.class_names[label] == f"{alphabet}/{character}"
        assert part == ("images_background" if label < 12 else "images_evaluation")


def test_characters_of_one_alphabet_are_one_group(folder):
    listing = list_images("omniglot", folder)
    alphabets = [name.split("/")[0] for name in listing.class_names]
    assert len(set(alphabets)) == 12
    for group in set(listing.groups):
        assert len({a for a, g in zip(alphabets, listing.groups, strict=True) if g == group}) == 1
    assert len(set(listing.groups)) == 12
    assert len(listing.groups) == 24


def test_alphabets_of_one_name_in_both_parts_are_two_groups(tmp_path):
    folder = make_tree("omniglot", tmp_path, layout="folders", num_classes=4)
    evaluation = folder / "images_evaluation"
    (evaluation / "Alphabet_30").rename(evaluation / "Alphabet_00")
    listing = list_images("omniglot", folder)
    assert listing.counts()["all"] == (16, 4)
    assert listing.groups.tolist() == [0, 0, 1, 1]


def test_one_part_may_be_unpacked_and_the_other_not(zips, tmp_path):
    before = list_images("omniglot", zips)
    with zipfile.ZipFile(zips / ARCHIVES[0]) as archive:
        archive.extractall(zips)
    after = list_images("omniglot", zips)
    assert after.files[0] == before.files[0].removeprefix("images_background.zip/")
    assert after.files[-1] == before.files[-1]
    assert after.labels.tolist() == before.labels.tolist()


def test_stray_members_of_an_archive_are_ignored(zips):
    before = list_images("omniglot", zips)
    with zipfile.ZipFile(zips / ARCHIVES[0], "a") as archive:
        place = "images_background/Alphabet_00/character01"
        archive.writestr(f"__MACOSX/{place}/._0001_01.png", b"resource fork of macOS")
        archive.writestr(f"{place}/._0001_01.png", b"resource fork of macOS")
        archive.writestr("images_background/.DS_Store", b"finder")
    assert list_images("omniglot", zips).files == before.files


def test_a_missing_part_is_named(folder):
    place = folder / "images_evaluation"
    if place.is_dir():
        place.rename(folder / "elsewhere")
    else:
        (folder / ARCHIVES[1]).unlink()
    message = (
        r"has neither images_evaluation nor images_evaluation\.zip; run `dmlkit data omniglot`"
    )
    with pytest.raises(FileNotFoundError, match=message):
        list_images("omniglot", folder)


@pytest.mark.parametrize("archive", ARCHIVES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_half_an_archive_is_refused(keep, archive, zips):
    content = (zips / archive).read_bytes()
    (zips / archive).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=f"{archive} cannot be read .*; download it again"):
        list_images("omniglot", zips)


def test_an_archive_of_something_else_is_refused(zips):
    with zipfile.ZipFile(zips / ARCHIVES[1], "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"48 images of 12 classes .* has 96 images of 24 classes"):
        list_images("omniglot", zips)


def test_what_torchvision_unpacks_is_read(monkeypatch, tmp_path):
    make_tree("omniglot", tmp_path, layout="torchvision")
    monkeypatch.setattr(Omniglot, "_check_integrity", lambda self: True)
    listing = list_images("omniglot", tmp_path)
    drawings = Omniglot(str(tmp_path), background=True)
    assert len(drawings) == listing.counts()["train"][0]
    assert len({label for _, label in drawings}) == listing.num_train


def test_archives_on_this_machine_are_those_of_50_alphabets(monkeypatch, tmp_path):
    if not (PROJECT_ROOT / "data" / "omniglot").is_dir():
        pytest.skip("there is no data/omniglot")
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path))
    listing = list_images("omniglot", PROJECT_ROOT / "data")
    assert listing.num_train == 964 and not listing.is_generated
    assert len(set(listing.groups[:964])) == 30 and len(set(listing.groups[964:])) == 20
    assert set(listing.groups[:964]).isdisjoint(listing.groups[964:])
    assert len(fingerprint(listing.limited(4, 2))) == 64
