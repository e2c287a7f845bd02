"""From files to uint8 images: what is read, what is refused, and what the cache depends on."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dmlkit.datasets import decoding
from dmlkit.datasets.decoding import (
    SPARE_BYTES,
    ImagesOnDisk,
    decode,
    decoded_images,
    fingerprint,
)
from dmlkit.datasets.readers import class_folder, omniglot
from dmlkit.datasets.readers.listing import Listing
from tests.official_trees import make_tree

ROOT = Path(__file__).parents[2]
SIZE = 8
GB = 10**9


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The folder of all caches, of this test alone."""
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    decoding._opened.cache_clear()


def save(path, colour, mode="RGB", size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def root(tmp_path):
    """A folder of two classes, of three and of two images of one colour and shape each."""
    folder = tmp_path / "birds"
    for name, value in (("wren/b.png", 20), ("wren/a.jpg", 10), ("wren/c.JPEG", 30)):
        save(folder / name, (value, value, value))
    for name, value in (("owl/2.png", 200), ("owl/1.png", 100)):
        save(folder / name, (value, 0, 255), size=(6, value // 10))
    return folder


@pytest.fixture
def birds(root):
    return class_folder.list_images(root)


def listing_of(root, files):
    """A listing of ``files``, whose classes alternate."""
    return Listing(root, list(files), np.arange(len(files)) % 2, ("even", "odd"), 1)


def load(listing, image_size=SIZE):
    return decoded_images(listing, fingerprint(listing), image_size)


@pytest.fixture
def watched(monkeypatch):
    """How often each of two functions was called so far."""
    calls = Counter()

    def count(name, do):
        def counting(*arguments):
            calls[name] += 1
            return do(*arguments)

        return counting

    for name in ("read", "decode"):
        monkeypatch.setattr(decoding, name, count(name, getattr(decoding, name)))
    return calls


def limit_disk(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free, 0, free))


# What an image becomes.


def png(path, depth, colour_type, *lines):
    """Write a PNG of the given lines of bytes, of kinds that Pillow reads but does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    width = len(lines[0]) // (channels * depth // 8)
    header = struct.pack(">IIBBBBB", width, len(lines), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", "png", 77, (77, 77, 77)),
        ("L", "jpg", 77, (77, 77, 77)),
        ("LA", "png", (77, 128), (77, 77, 77)),
        ("1", "png", 1, (255, 255, 255)),
        ("P", "png", 0, (0, 0, 0)),
        ("RGBA", "png", (200, 10, 30, 255), (200, 10, 30)),
        ("RGBA", "png", (200, 10, 30, 0), (200, 10, 30)),
        ("RGBA", "webp", (200, 200, 200, 255), (200, 200, 200)),
        ("CMYK", "jpg", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", "jpg", (77, 128, 128), (77, 77, 77)),
        ("RGB", "bmp", (1, 2, 3), (1, 2, 3)),
        ("RGB", "gif", (255, 0, 0), (255, 0, 0)),
    ],
)
def test_images_of_any_mode_become_rgb(mode, suffix, colour, expected, tmp_path):
    save(tmp_path / f"image.{suffix}", colour, mode)
    pixels, size = decode(listing_of(tmp_path, [f"image.{suffix}"]), 0, SIZE)
    assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == torch.uint8
    assert (pixels[:, 4, 4].int() - torch.tensor(expected)).abs().max() <= 2
    assert size == (10, 12)


@pytest.mark.parametrize("transparency", [0, 1, b"\x00\x80"], ids=["this", "other", "of each"])
def test_a_palette_with_transparency_keeps_its_colours(transparency, tmp_path):
    image = Image.new("P", (12, 10), 0)
    image.putpalette([200, 10, 30, 1, 2, 3])
    image.save(tmp_path / "image.png", transparency=transparency)
    with Image.open(tmp_path / "image.png") as saved:
        assert saved.mode == "P" and "transparency" in saved.info
    pixels, _ = decode(listing_of(tmp_path, ["image.png"]), 0, SIZE)
    assert pixels[:, 4, 4].tolist() == [200, 10, 30]


@pytest.mark.parametrize(("mode", "colour"), [("L", 77), ("RGB", (77, 77, 77))])
def test_a_transparent_colour_stays_a_colour(mode, colour, tmp_path):
    image = Image.new(mode, (12, 10), colour)
    image.save(tmp_path / "image.png", transparency=colour)
    pixels, _ = decode(listing_of(tmp_path, ["image.png"]), 0, SIZE)
    assert (pixels == 77).all()


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (0x4D00, 77), (65535, 255)])
@pytest.mark.parametrize("colour_type", [0, 4, 2, 6], ids=["grey", "grey alpha", "RGB", "RGBA"])
def test_16_bits_are_scaled_to_8_and_not_clipped(colour_type, value, expected, tmp_path):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    line = struct.pack(">H", value) * channels * 12
    png(tmp_path / "image.png", 16, colour_type, *[line] * 10)
    pixels, size = decode(listing_of(tmp_path, ["image.png"]), 0, SIZE)
    assert (pixels == expected).all()
    assert size == (10, 12)


def test_images_are_resized_to_a_square_without_keeping_their_ratio(tmp_path):
    # Left half black, right half white, twice as wide as high.
    image = np.zeros((16, 32, 3), dtype=np.uint8)
    image[:, 16:] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    pixels, size = decode(listing_of(tmp_path, ["image.png"]), 0, SIZE)
    assert (pixels[:, :, :3] == 0).all() and (pixels[:, :, 5:] == 255).all()
    assert size == (16, 32)


@pytest.mark.parametrize("shape", [(50, 35), (5, 7), (8, 8)], ids=["reduced", "enlarged", "kept"])
def test_resizing_is_bilinear_and_smooths_what_it_reduces(shape, tmp_path):
    image = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None].float(),
        (SIZE, SIZE),
        mode="bilinear",
        antialias=True,
    )
    pixels, _ = decode(listing_of(tmp_path, ["image.png"]), 0, SIZE)
    assert (pixels - expected[0]).abs().max() <= 1  # grey levels: rounding


# What is cached.


def test_images_and_their_sizes_come_in_the_order_of_the_listing(birds):
    images, sizes = load(birds)
    assert birds.files == ["owl/1.png", "owl/2.png", "wren/a.jpg", "wren/b.png", "wren/c.JPEG"]
    assert images.shape == (5, 3, SIZE, SIZE) and images.dtype == torch.uint8
    assert images[:2, :, 4, 4].tolist() == [[100, 0, 255], [200, 0, 255]]
    assert (images[2:, 0, 4, 4].int() - torch.tensor([10, 20, 30])).abs().max() <= 2  # JPEG
    assert sizes.tolist() == [[10, 6], [20, 6], [10, 12], [10, 12], [10, 12]]
    assert sizes.dtype == torch.int64


def test_every_image_has_its_place_whichever_is_decoded_first(tmp_path, monkeypatch):
    for number in range(20):
        save(tmp_path / f"{number}.png", (number, 0, 0), size=(12, 10 + number))

    def the_earlier_the_slower(listing, row, image_size):
        time.sleep((20 - row) / 2000)
        return decode(listing, row, image_size)

    monkeypatch.setattr(decoding, "decode", the_earlier_the_slower)
    images, sizes = load(listing_of(tmp_path, [f"{number}.png" for number in range(20)]))
    assert images[:, 0, 0, 0].tolist() == list(range(20))
    assert sizes[:, 0].tolist() == list(range(10, 30))


def test_images_are_decoded_once_for_each_size(birds, cache, watched, capsys):
    first, sizes = load(birds)
    assert watched["decode"] == 5
    capsys.readouterr()
    again, same_sizes = load(birds)
    assert watched["decode"] == 5
    assert torch.equal(first, again) and torch.equal(sizes, same_sizes)
    assert capsys.readouterr().out == ""
    load(birds, 4)
    assert watched["decode"] == 10
    folders = [path for path in (cache / "images").iterdir() if path.is_dir()]
    assert [sorted(os.listdir(folder)) for folder in folders] == [["images.npy", "sizes.npy"]] * 2


def test_other_code_decodes_anew(birds, watched, monkeypatch):
    load(birds)
    monkeypatch.setattr(decoding, "DECODER", "0a1b2c3d")
    load(birds)
    assert watched["decode"] == 10


def test_other_images_are_decoded_anew(birds, root, watched):
    load(birds)
    save(root / "owl" / "1.png", (101, 0, 255))
    images, sizes = load(birds)
    assert watched["decode"] == 10
    assert images[0, 0, 4, 4] == 101
    assert sizes[0].tolist() == [10, 12]


def test_a_size_estimate_and_progress_are_shown(birds, capsys):
    load(birds, 1200)
    shown = capsys.readouterr().out
    assert "decoding 5 images to 1200 px, once: 0.02 GB\n" in shown
    for what in ("checking files", "decoding"):
        assert f"{what}: 100%" in shown
    assert shown.count(" 5/5 ") == 2
    assert shown.isascii()


def test_images_are_decoded_in_parallel(birds, monkeypatch):
    threads, together = set(), threading.Barrier(5)

    def meet(listing, row, image_size):
        together.wait(timeout=60)  # until all five are being decoded
        threads.add(threading.get_ident())
        return decode(listing, row, image_size)

    monkeypatch.setattr(decoding, "decode", meet)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    load(birds)
    assert ImagesOnDisk(birds, SIZE).index_select(0, torch.arange(5)).shape[0] == 5
    assert len(threads) >= 5


def test_writing_into_what_was_read_leaves_the_cache_as_it_is(birds):
    images, sizes = load(birds)
    images[0], sizes[0] = 7, 7
    images, sizes = load(birds)
    assert images[0, 0, 4, 4] == 100 and sizes[0].tolist() == [10, 6]


def test_readers_that_start_at_once_decode_once_and_see_the_same(birds, watched):
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: decoded_images(birds, "0a" * 32, SIZE)[0], range(3)))
    assert watched["decode"] == 5
    assert torch.equal(stores[0], stores[1]) and torch.equal(stores[0], stores[2])


# Three processes of one import, for the time that takes: a fork is no less of a process.
THREE_PROCESSES = """
import hashlib, os, sys, time
from pathlib import Path
from dmlkit.datasets import decoding
from dmlkit.datasets.readers import class_folder

root, notes = map(Path, sys.argv[1:])
decode = decoding.decode

def stop_half_way(listing, row, image_size):
    with (notes / "decoded").open("a") as file:
        file.write(f"{os.getpid()} {row}\\n")
    if row == 12 and not (notes / "go on").exists():
        (notes / f"{os.getpid()} is half-way").touch()
        time.sleep(60)
    return decode(listing, row, image_size)

def build():
    decoding.decode = stop_half_way
    listing = class_folder.list_images(root)
    content = decoding.fingerprint(listing)
    (notes / f"{os.getpid()} is ready").touch()
    images, sizes = decoding.decoded_images(listing, content, 8)
    digest = hashlib.sha256(images.numpy().tobytes() + sizes.numpy().tobytes()).hexdigest()
    (notes / f"{os.getpid()} is done").write_text(digest)

for _ in range(3):
    if not os.fork():
        build()
        os._exit(0)
codes = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3))
print()  # the progress bar of the one that was killed may have no end
print(codes)
"""


def test_of_processes_that_build_at_once_one_is_killed_and_one_builds_it_whole(
    class_tree, tmp_path, cache
):
    notes = tmp_path / "notes"
    notes.mkdir()

    def wait_for(pattern, count):
        deadline = time.monotonic() + 60
        while len(found := list(notes.glob(pattern))) < count:
            assert time.monotonic() < deadline, f"no {pattern}"
            time.sleep(0.02)
        return [path.name.split()[0] for path in found]

    def decoded():
        lines = (notes / "decoded").read_text().splitlines()
        return Counter(line.split()[0] for line in lines)

    process = subprocess.Popen(
        [sys.executable, "-c", THREE_PROCESSES, class_tree, notes],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for("* is ready", 3)
        (first,) = wait_for("* is half-way", 1)
        time.sleep(0.2)  # in which the others would begin if they did not wait
        assert decoded().keys() == {first}
        (left,) = [path for path in (cache / "images").iterdir() if path.is_dir()]
        name = left.name.removeprefix(".").removesuffix(".partial")
        assert left.name == f".{name}.partial"
        (notes / "go on").touch()
        os.kill(int(first), signal.SIGKILL)
        shown, _ = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    assert shown.splitlines()[-1] == "[-9, 0, 0]"
    rows = decoded()
    assert rows.pop(first) < 32
    assert list(rows.values()) == [32]  # by the second; the third found it built
    assert sorted(os.listdir(cache / "images")) == [name, f"{name}.lock"]
    listing = class_folder.list_images(class_tree)
    images = torch.stack([decode(listing, row, SIZE)[0] for row in range(32)])
    sizes = torch.tensor([[20, 24]] * 32)
    digest = hashlib.sha256(images.numpy().tobytes() + sizes.numpy().tobytes()).hexdigest()
    assert [path.read_text() for path in notes.glob("* is done")] == [digest, digest]
    assert torch.equal(load(listing)[0], images)


# Where the disk is too small for a cache.


def test_a_disk_too_small_for_the_cache_gives_the_same_images_without(
    birds, cache, monkeypatch, capsys
):
    images, sizes = load(birds)
    monkeypatch.setenv("DMLKIT_CACHE", str(cache / "small"))
    limit_disk(monkeypatch, 1.2 * GB)
    content = fingerprint(birds)
    big, _ = decoded_images(birds, content, 10_000)
    shown = capsys.readouterr().out
    assert (
        f"5 images of 10000 px need 1.5 GB, but {cache / 'small'} has 1.2 GB free: decoding them "
        "for every batch, which is slower; make room or set DMLKIT_CACHE to a folder on another "
        "disk\n"
    ) in shown
    assert isinstance(big, ImagesOnDisk) and big.shape == (5, 3, 10_000, 10_000)

    limit_disk(monkeypatch, 0)
    on_disk, same_sizes = decoded_images(birds, content, SIZE)
    assert isinstance(on_disk, ImagesOnDisk)
    assert len(on_disk) == 5 and on_disk.shape == images.shape
    rows = torch.tensor([3, 0, 4, 4, 1, 2])
    chosen = on_disk.index_select(0, rows)
    assert chosen.dtype == torch.uint8 and chosen.is_contiguous()
    assert torch.equal(chosen, images[rows])
    assert torch.equal(same_sizes, sizes) and same_sizes.dtype == sizes.dtype
    assert not (cache / "small" / "images").exists()


@pytest.mark.parametrize(("missing", "cached"), [(0, True), (1, False)])
def test_a_cache_leaves_some_of_the_disk_free(missing, cached, birds, monkeypatch):
    limit_disk(monkeypatch, SPARE_BYTES + 5 * 3 * SIZE**2 - missing)
    assert isinstance(load(birds)[0], torch.Tensor) == cached


def test_what_is_cached_is_read_however_full_the_disk(birds, monkeypatch):
    load(birds)
    limit_disk(monkeypatch, 0)
    assert isinstance(load(birds)[0], torch.Tensor)


def test_sizes_are_measured_once_where_images_are_not_cached(birds, monkeypatch, watched):
    limit_disk(monkeypatch, 0)
    load(birds)
    before = watched["read"]
    load(birds)
    load(birds, 4)
    assert watched["read"] == before and watched["decode"] == 0


def test_a_disk_that_fills_up_while_it_is_written_leaves_nothing(birds, cache, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = fingerprint(birds)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="has no room for 0.0 GB .*; make room, or set DMLKIT_CACHE"):
        decoded_images(birds, content, SIZE)
    assert [path.suffix for path in (cache / "images").iterdir()] == [".lock"]


# What cannot be read.


def truncated_jpeg(path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-400])


def truncated_png(path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:-400])


def only_a_head(path):
    save(path, 0)
    path.write_bytes(path.read_bytes()[:20])


def text(path):
    path.write_text("<html>404</html>")


def png_of_ten_gigapixels(path):
    png(path, 8, 2, b"")
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


SPOILT = [truncated_jpeg, truncated_png, only_a_head, text, png_of_ten_gigapixels]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_an_image_that_cannot_be_read_is_named_and_nothing_is_kept(spoil, root, cache):
    spoil(root / "wren" / "a.jpg")
    with pytest.raises(ValueError, match=r"wren/a\.jpg cannot be decoded .*; replace it, or"):
        load(class_folder.list_images(root))
    assert [path.suffix for path in (cache / "images").iterdir()] == [".lock"]

    (root / "wren" / "a.jpg").unlink()
    assert len(load(class_folder.list_images(root))[0]) == 4


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda f: f.__name__)
def test_an_image_that_cannot_be_read_is_named_without_a_cache_too(spoil, birds, root):
    spoil(root / "wren" / "a.jpg")
    with pytest.raises(ValueError, match=r"wren/a\.jpg cannot be decoded .*; replace it, or"):
        ImagesOnDisk(birds, SIZE).index_select(0, torch.tensor([0, 2]))


@pytest.mark.parametrize("spoil", [only_a_head, text, png_of_ten_gigapixels])
def test_an_image_that_cannot_be_measured_is_named(spoil, birds, root, monkeypatch):
    spoil(root / "wren" / "a.jpg")
    limit_disk(monkeypatch, 0)
    with pytest.raises(ValueError, match=r"wren/a\.jpg cannot be decoded .*; replace it, or"):
        load(birds)


def test_room_that_another_builder_of_the_same_images_has_taken_is_not_missing(
    birds, cache, monkeypatch
):
    allocate = os.posix_fallocate

    def all_taken(descriptor, offset, length):
        allocate(descriptor, offset, length)
        limit_disk(monkeypatch, SPARE_BYTES)

    def killed(*arguments):
        raise SystemExit

    monkeypatch.setattr(os, "posix_fallocate", all_taken)
    monkeypatch.setattr(decoding, "decode", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
    with pytest.raises(SystemExit):
        load(birds)
    monkeypatch.undo()
    monkeypatch.setenv("DMLKIT_CACHE", str(cache))
    assert [path for path in (cache / "images").iterdir() if path.name.endswith(".partial")]
    limit_disk(monkeypatch, SPARE_BYTES)
    assert isinstance(load(birds)[0], torch.Tensor)


@pytest.mark.parametrize("bad", [0, 10])
def test_a_failing_image_stops_the_decoding_soon(bad, birds, root, watched, monkeypatch, cache):
    text(root / "wren" / "a.jpg")
    files = ["owl/1.png"] * 200
    files[bad] = "wren/a.jpg"
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(ValueError, match=r"wren/a\.jpg cannot be decoded"):
        load(listing_of(root, files))
    assert watched["decode"] <= bad + 8  # four wait for each core
    assert [path.suffix for path in (cache / "images").iterdir()] == [".lock"]


def test_empty_files_are_counted_and_one_is_named(root):
    for name in ("wren/a.jpg", "owl/2.png"):
        (root / name).write_bytes(b"")
    message = rf"^2 of 5 image files below {root} are empty, e\.g\. owl/2\.png; unpack .* again$"
    with pytest.raises(ValueError, match=message):
        fingerprint(class_folder.list_images(root))


@pytest.mark.parametrize("missing", ["wren/d.jpg", "robin/a.jpg", "owl/1.png/a.jpg"])
def test_missing_files_are_counted_and_one_is_named(missing, root, cache):
    listing = listing_of(root, ["owl/1.png", missing, "wren/a.jpg", "wren/e.jpg"])
    message = rf"^2 of 4 listed images are missing below {root}, e\.g\. {missing}; unpack the data"
    with pytest.raises(FileNotFoundError, match=message):
        fingerprint(listing)
    assert not cache.exists()


def test_images_missing_in_an_archive_or_with_it_are_named(root):
    with zipfile.ZipFile(root / "owls.zip", "w") as archive:
        archive.write(root / "owl" / "1.png", "owl/1.png")
    listing = listing_of(root, ["owls.zip/owl/1.png", "owls.zip/owl/3.png", "wrens.zip/a.png"])
    message = r"^2 of 3 listed images are missing .*, e\.g\. owls\.zip/owl/3\.png; unpack"
    with pytest.raises(FileNotFoundError, match=message):
        fingerprint(listing)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_image_that_an_archive_holds_damaged_is_named(compression, root):
    with zipfile.ZipFile(root / "owls.zip", "w", compression) as archive:
        archive.writestr("owl/1.bmp", bytes(range(256)) * 10)
    data = bytearray((root / "owls.zip").read_bytes())
    data[39:60] = b"\xff" * 21  # behind the local header
    (root / "owls.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"owls\.zip/owl/1\.bmp cannot be decoded .*; replace it"):
        decode(listing_of(root, ["owls.zip/owl/1.bmp"]), 0, SIZE)
    with pytest.raises(ValueError, match=r"owls\.zip/owl/1\.bmp cannot be decoded .*; replace it"):
        fingerprint(listing_of(root, ["owls.zip/owl/1.bmp"]))


def test_names_may_hold_any_characters_and_bytes(tmp_path):
    root = tmp_path / "Vögel und 鳥"
    names = ["Ägretta 白鷺/ü 1.png", "Zilpzalp's 100%/{0}.png", os.fsdecode(b"wren/\xff\xfe.png")]
    for value, name in enumerate(names):
        save(root / name, (value, 0, 0))
    listing = listing_of(root, names)
    assert load(listing)[0][:, 0, 0, 0].tolist() == [0, 1, 2]
    (root / names[2]).write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be decoded"):
        load(listing)
    (root / names[2]).unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 listed images are missing"):
        load(listing)


def test_nothing_is_written_beside_the_images(root, birds):
    def state():
        return {path: path.stat()[:9] for path in (root, *sorted(root.rglob("*")))}

    for path in (*root.rglob("*"), root):
        os.utime(path, (10**9, 10**9))
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: values[:7] + values[8:] for path, values in state().items()}  # not when read
    load(birds)
    ImagesOnDisk(birds, SIZE).index_select(0, torch.arange(5))
    assert {path: values[:7] + values[8:] for path, values in state().items()} == before
    for folder in (root, root / "owl", root / "wren"):
        folder.chmod(0o755)


def test_a_cache_that_cannot_be_written_is_refused_in_one_sentence(birds, cache):
    content = fingerprint(birds)
    (cache / "images").write_text("a file")
    message = f"^cannot write to {cache / 'images'} .*; .*; DMLKIT_CACHE names the folder"
    with pytest.raises(PermissionError, match=message):
        decoded_images(birds, content, SIZE)
    shutil.rmtree(cache)
    cache.write_text("a file")
    with pytest.raises(PermissionError, match=f"^cannot write to {cache}.*; choose another folder"):
        load(birds)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_serves_what_it_holds_and_refuses_the_rest(birds, cache):
    images, _ = load(birds)
    folders = [path for path in (cache, *cache.rglob("*")) if path.is_dir()]
    before = sorted(cache.rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    assert torch.equal(load(birds)[0], images)
    with pytest.raises(PermissionError, match=f"^cannot write to {cache}.*permissions$"):
        load(birds, 4)
    for folder in folders:
        folder.chmod(0o755)
    assert sorted(cache.rglob("*")) == before


# What the fingerprint depends on.


def test_the_fingerprint_does_not_depend_on_time_or_place(birds, root, tmp_path):
    first = fingerprint(birds)
    os.utime(root / "owl" / "1.png", (1, 1))
    assert fingerprint(birds) == first
    moved = shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    assert fingerprint(class_folder.list_images(moved)) == first


def change_content(root, listing):
    data = bytearray((root / "owl" / "1.png").read_bytes())
    data[40] ^= 1
    (root / "owl" / "1.png").write_bytes(data)  # of the same size
    return listing


def change_name(root, listing):
    (root / "owl" / "1.png").rename(root / "owl" / "0.png")
    return class_folder.list_images(root)


def change_class_name(root, listing):
    (root / "owl").rename(root / "eagle")
    return class_folder.list_images(root)


def change_label(root, listing):
    return replace(listing, labels=np.array([0, 0, 1, 0, 1]))


def exchange_contents(root, listing):
    (root / "owl" / "1.png").rename(root / "owl" / "3.png")
    (root / "owl" / "2.png").rename(root / "owl" / "1.png")
    (root / "owl" / "3.png").rename(root / "owl" / "2.png")
    return listing


def leave_one_out(root, listing):
    return replace(listing, files=listing.files[:4], labels=listing.labels[:4])


def change_order(root, listing):
    return replace(listing, files=listing.files[::-1], labels=listing.labels[::-1])


def have_a_gallery(root, listing):
    return replace(listing, is_gallery=np.array([False] * 4 + [True]))


def have_another_gallery(root, listing):
    return replace(listing, is_gallery=np.array([False] * 3 + [True] * 2))


def test_the_fingerprint_changes_with_content_names_labels_and_roles(birds, root):
    changes = [
        lambda root, listing: listing,
        have_a_gallery,
        have_another_gallery,
        change_label,
        change_order,
        leave_one_out,
        change_content,
        exchange_contents,
        change_name,
        change_class_name,
    ]
    found = [fingerprint(change(root, birds)) for change in changes]
    assert len(set(found)) == len(changes)
    assert all(re.fullmatch("[0-9a-f]{64}", one) for one in found)


def test_the_fingerprint_of_a_generated_tree_says_so_and_its_images_are_the_same(birds, watched):
    generated = replace(birds, is_generated=True, root=birds.root / "wren" / "..")
    found = fingerprint(birds)
    assert fingerprint(generated) == f"generated-{found}"
    images, _ = decoded_images(birds, found, SIZE)
    assert torch.equal(decoded_images(generated, f"generated-{found}", SIZE)[0], images)
    assert watched["decode"] == 5


def test_contents_are_read_again_only_where_something_may_have_changed(birds, root, watched):
    first = fingerprint(birds)
    assert watched["read"] == 5
    assert fingerprint(birds) == first
    assert watched["read"] == 5
    os.utime(root / "owl" / "1.png", (1, 1))
    assert fingerprint(birds) == first
    assert watched["read"] == 10
    assert fingerprint(birds) == first
    assert watched["read"] == 10


def test_other_content_of_the_same_size_and_set_back_to_its_time_is_noticed(birds, root):
    first, path = fingerprint(birds), root / "owl" / "1.png"
    state, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert fingerprint(birds) != first


def test_other_images_of_the_same_names_sizes_and_times_are_not_taken_for_these(birds, tmp_path):
    other = shutil.copytree(birds.root, tmp_path / "other")
    change_content(other, None)
    for root in (birds.root, other):
        os.utime(root / "owl" / "1.png", (1, 1))
    assert fingerprint(birds) != fingerprint(replace(birds, root=other))


def test_archives_and_folders_have_the_same_fingerprint_and_the_same_images(tmp_path, watched):
    zipped, unpacked = (
        omniglot.list_images(make_tree("omniglot", tmp_path / layout, layout=layout))
        for layout in ("zips", "folders")
    )
    assert ".zip/" in zipped.files[0] and ".zip/" not in unpacked.files[0]
    found = fingerprint(zipped)
    assert watched["read"] == len(zipped.files)
    assert fingerprint(zipped) == found
    assert watched["read"] == len(zipped.files)
    assert fingerprint(unpacked) == found

    images = decoded_images(zipped, found, SIZE)[0]
    assert watched["decode"] == len(zipped.files)
    assert len({image.numpy().tobytes() for image in images}) > 20  # not all the same
    rows = torch.arange(len(unpacked.files))
    assert torch.equal(ImagesOnDisk(unpacked, SIZE).index_select(0, rows), images)


def test_an_archive_whose_content_changed_has_another_fingerprint(tmp_path):
    found = set()
    for content in (b"abc", b"abd"):  # of one size and time
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            for file in ("a.png", "b.png"):
                archive.writestr(zipfile.ZipInfo(file), content)
        os.utime(tmp_path / "all.zip", (1, 1))
        decoding._opened.cache_clear()  # as another process would find it
        found.add(fingerprint(listing_of(tmp_path, ["all.zip/a.png", "all.zip/b.png"])))
    assert len(found) == 2


def test_a_list_that_names_a_broken_archive_or_no_possible_file_is_refused(root):
    (root / "owls.zip").write_bytes(b"PK\3\4 and nothing more")
    with pytest.raises(ValueError, match=r"owls\.zip cannot be read .*; download it again"):
        fingerprint(listing_of(root, ["owls.zip/1.png"]))
    with pytest.raises(FileNotFoundError, match="1 of 1 listed images are missing"):
        fingerprint(listing_of(root, ["owl/1\0.png"]))


@pytest.mark.parametrize(
    ("field", "value"),
    [(8, 1), (10, 99), (24, 2 * GB), (42, 10**6)],
    ids=["password", "method", "size", "place"],
)
def test_an_image_that_an_archive_cannot_give_is_named(field, value, root):
    with zipfile.ZipFile(root / "owls.zip", "w") as archive:
        archive.write(root / "owl" / "1.png", "1.png")
    data = bytearray((root / "owls.zip").read_bytes())
    struct.pack_into("<H" if field < 24 else "<I", data, data.index(b"PK\1\2") + field, value)
    (root / "owls.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"owls\.zip.* cannot be (decoded|read)"):
        decode(listing_of(root, ["owls.zip/1.png"]), 0, SIZE)
