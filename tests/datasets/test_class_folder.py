"""Folders of images: what is read, what is refused, and what the cache depends on."""

import os
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dmlkit.datasets import class_folder
from dmlkit.datasets.class_folder import decode, list_class_folder, read_class_folder

SIZE = 8


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of the decoded images, away from the project's own."""
    monkeypatch.setattr("dmlkit.datasets.cache.PROJECT_ROOT", tmp_path)
    read_class_folder.cache_clear()
    yield tmp_path / ".cache" / "images"
    read_class_folder.cache_clear()


def save(path, colour, mode="RGB", size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def birds(tmp_path):
    """Two classes, of three and of two images of one colour each."""
    root = tmp_path / "birds"
    for name, value in (("wren/b.png", 20), ("wren/a.jpg", 10), ("wren/c.JPEG", 30)):
        save(root / name, (value, value, value))
    for name, value in (("owl/2.png", 200), ("owl/1.png", 100)):
        save(root / name, (value, 0, 255))
    return root


def read_again(root):
    """Read as another process would, whose memory holds nothing."""
    read_class_folder.cache_clear()
    return read_class_folder(root, SIZE)


def test_classes_and_images_come_in_sorted_order(birds):
    everything = read_class_folder(birds, SIZE)
    assert everything.class_names == ("owl", "wren")
    assert everything.labels.tolist() == [0, 0, 1, 1, 1]
    assert everything.labels.dtype == torch.int64
    assert everything.images.shape == (5, 3, SIZE, SIZE)
    assert everything.images.dtype == torch.uint8
    assert everything.index.tolist() == list(range(5))
    centres = everything.images[:, :, 4, 4]
    assert centres[:2].tolist() == [[100, 0, 255], [200, 0, 255]]
    assert (centres[2:, 0] - torch.tensor([10, 20, 30])).abs().max() <= 2  # JPEG is lossy


def png_16_bit(path, value):
    """Write a 16-bit greyscale PNG of one value, which Pillow can read as ``I;16``."""
    Image.fromarray(np.full((10, 12), value, dtype=np.uint16)).save(path)


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", "png", 77, (77, 77, 77)),
        ("L", "jpg", 77, (77, 77, 77)),
        ("LA", "png", (77, 128), (77, 77, 77)),
        ("1", "png", 1, (255, 255, 255)),
        ("P", "png", 0, (0, 0, 0)),
        ("RGBA", "png", (200, 10, 30, 255), (200, 10, 30)),
        ("CMYK", "jpg", (0, 255, 255, 0), (255, 0, 0)),
        ("RGB", "bmp", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_images_of_any_mode_become_rgb(mode, suffix, colour, expected, tmp_path):
    path = tmp_path / f"image.{suffix}"
    save(path, colour, mode)
    pixels = decode(path, SIZE)
    assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == np.uint8
    assert np.abs(pixels[:, 4, 4].astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (0x4D00, 77), (65535, 255)])
def test_16_bit_greyscale_is_scaled_to_8_bits_and_not_clipped(value, expected, tmp_path):
    png_16_bit(tmp_path / "image.png", value)
    assert (decode(tmp_path / "image.png", SIZE) == expected).all()


def test_images_are_resized_to_a_square_without_keeping_their_ratio(tmp_path):
    # Left half black, right half white, twice as wide as high.
    image = np.zeros((16, 32, 3), dtype=np.uint8)
    image[:, 16:] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    pixels = decode(tmp_path / "image.png", SIZE)
    assert (pixels[:, :, :3] == 0).all() and (pixels[:, :, 5:] == 255).all()


def test_stray_and_hidden_files_are_ignored(birds):
    before = read_class_folder(birds, SIZE)
    (birds / "owl" / "._1.png").write_bytes(b"resource fork")
    (birds / "owl" / "Thumbs.db").write_bytes(b"thumbnails")
    (birds / ".DS_Store").write_bytes(b"finder")
    (birds / ".hidden").mkdir()
    (birds / "readme.txt").write_text("about")
    after = read_again(birds)
    assert after.fingerprint == before.fingerprint
    assert after.class_names == before.class_names
    assert len(after) == 5


def test_names_may_hold_any_characters(tmp_path):
    root = tmp_path / "Vögel und 鳥"
    for name in ("Ägretta 白鷺", "zaunkönig", "Zilpzalp's 100%"):
        for number in range(2):
            save(root / name / f"ünter {number}.png", (number, 0, 0))
    everything = read_class_folder(root, SIZE)
    # By code point, whatever the language of the machine.
    assert everything.class_names == ("Zilpzalp's 100%", "zaunkönig", "Ägretta 白鷺")
    assert everything.images[:, 0, 0, 0].tolist() == [0, 1] * 3


def test_a_class_of_one_image_is_refused_by_name(birds):
    (birds / "owl" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"class folder .*owl holds 1 image.*remove the folder"):
        read_class_folder(birds, SIZE)


def test_a_missing_folder_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent; set DATA_DIR"):
        read_class_folder(tmp_path / "absent", SIZE)


def test_a_folder_of_images_without_classes_is_refused(tmp_path):
    save(tmp_path / "flat" / "a.png", 0, "L")
    with pytest.raises(FileNotFoundError, match=r"flat holds no class folders.*flat/<class name>/"):
        read_class_folder(tmp_path / "flat", SIZE)


def truncated_jpeg(path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-400])


def zero_bytes(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("<html>404</html>")


def png_of_ten_gigapixels(path):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))


@pytest.mark.parametrize(
    "spoil", [truncated_jpeg, zero_bytes, text, png_of_ten_gigapixels], ids=lambda f: f.__name__
)
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_kept(spoil, birds, cache):
    spoil(birds / "wren" / "a.jpg")
    with pytest.raises(ValueError, match=r"wren/a\.jpg cannot be decoded.*replace or remove it"):
        read_class_folder(birds, SIZE)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]

    (birds / "wren" / "a.jpg").unlink()
    assert len(read_class_folder(birds, SIZE)) == 4


def test_the_fingerprint_depends_on_names_and_content_but_not_on_time_or_place(birds, tmp_path):
    first = read_class_folder(birds, SIZE).fingerprint
    os.utime(birds / "owl" / "1.png", (1, 1))
    assert read_again(birds).fingerprint == first

    moved = shutil.copytree(birds, tmp_path / "elsewhere" / "copy")
    assert read_again(moved).fingerprint == first

    save(moved / "owl" / "1.png", (101, 0, 255))
    changed = read_again(moved)
    assert changed.fingerprint != first
    assert changed.images[0, 0, 4, 4] == 101

    (birds / "owl").rename(birds / "eagle")
    assert read_again(birds).fingerprint != first


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files decoded so far."""
    names = []

    def watched(path, image_size):
        names.append(path.name)
        return decode(path, image_size)

    monkeypatch.setattr(class_folder, "decode", watched)
    return names


def test_images_are_decoded_once_for_each_size(birds, cache, decoded):
    first = read_class_folder(birds, SIZE)
    again = read_again(birds)
    assert len(decoded) == 5
    assert torch.equal(first.images, again.images)
    read_class_folder(birds, 4)
    assert len(decoded) == 10
    assert len(list(cache.glob("*.npy"))) == 2


def test_readers_that_start_at_once_decode_once_and_see_the_same(birds, decoded):
    paths, _, _ = list_class_folder(birds)
    with ThreadPoolExecutor(3) as pool:
        stores = list(
            pool.map(lambda _: class_folder.decoded_images(paths, "0a" * 32, SIZE), range(3))
        )
    assert len(decoded) == 5
    assert torch.equal(stores[0], stores[1]) and torch.equal(stores[0], stores[2])


def test_writing_into_a_read_store_leaves_the_cache_as_it_is(birds):
    first = read_class_folder(birds, SIZE)
    first.images[0] = 7
    assert read_again(birds).images[0, 0, 4, 4] == 100
