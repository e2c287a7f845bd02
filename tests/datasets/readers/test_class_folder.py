"""Folders of images: what is listed, and what is refused."""

import shutil

import pytest
from PIL import Image

from dmlkit.datasets import list_images


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10)).save(path)


@pytest.fixture
def birds(tmp_path):
    """Three classes, of two or three images."""
    root = tmp_path / "birds"
    for name in ("wren/b.png", "wren/a.jpg", "wren/c.JPEG", "owl/2.png", "owl/1.png"):
        save(root / name)
    for name in ("kite/1.webp", "kite/2.bmp"):
        save(root / name)
    return root


def test_classes_and_images_come_in_sorted_order_and_the_first_half_trains(birds):
    listing = list_images("class_folder", birds)
    assert listing.root == birds
    assert listing.class_names == ("kite", "owl", "wren")
    assert listing.num_train == 1
    assert listing.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert listing.files[:4] == ["kite/1.webp", "kite/2.bmp", "owl/1.png", "owl/2.png"]
    assert listing.files[4:] == ["wren/a.jpg", "wren/b.png", "wren/c.JPEG"]
    assert listing.is_gallery is None and listing.groups is None
    save(birds / "tern" / "1.png")
    save(birds / "tern" / "2.png")
    assert list_images("class_folder", birds).num_train == 2


def test_stray_and_hidden_files_are_ignored(birds):
    before = list_images("class_folder", birds)
    (birds / "owl" / "._1.png").write_bytes(b"resource fork")
    (birds / "owl" / "Thumbs.db").write_bytes(b"thumbnails")
    (birds / ".DS_Store").write_bytes(b"finder")
    (birds / ".hidden").mkdir()
    (birds / "readme.txt").write_text("about")
    assert list_images("class_folder", birds).files == before.files


def test_names_may_hold_any_characters(tmp_path):
    root = tmp_path / "Vögel und 鳥"
    for name in ("Ägretta 白鷺", "zaunkönig", "Zilpzalp's 100%"):
        for number in range(2):
            save(root / name / f"ünter {number}.png")
    listing = list_images("class_folder", root)
    # By code point, whatever the language of the machine.
    assert listing.class_names == ("Zilpzalp's 100%", "zaunkönig", "Ägretta 白鷺")
    assert all((root / file).exists() for file in listing.files)


def test_folders_may_be_links(birds, tmp_path):
    (tmp_path / "links").mkdir()
    for name in ("owl", "wren"):
        (tmp_path / "links" / name).symlink_to(birds / name)
    assert list_images("class_folder", tmp_path / "links").class_names == ("owl", "wren")


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_of_fewer_than_two_images_is_refused_by_name(left, birds):
    for path in sorted((birds / "owl").iterdir())[left:]:
        path.unlink()
    message = rf"class folder .*owl holds {left} image\(s\) of the kinds .* add images or remove"
    with pytest.raises(ValueError, match=message):
        list_images("class_folder", birds)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent; set DATA_DIR"):
        list_images("class_folder", tmp_path / "absent")


def test_a_folder_of_images_without_classes_is_refused(birds, tmp_path):
    flat = shutil.copytree(birds / "owl", tmp_path / "flat")
    with pytest.raises(FileNotFoundError, match=r"flat holds no class folders.*flat/<class name>/"):
        list_images("class_folder", flat)
