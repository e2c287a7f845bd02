"""From the files of a listing to uint8 images: decoded once into a cache, or again for each batch.

Images are kept as squares, whatever their shape; their original sizes are kept beside them, with
which transforms restore the shape where a paper's crop follows it.
"""

import hashlib
import inspect
import io
import lzma
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from dmlkit.datasets.cache import bytes_begun, cache_folder, cached_arrays, is_cached
from dmlkit.datasets.readers.listing import Listing, open_archive
from dmlkit.paths import write_atomically

Result = TypeVar("Result")
SPARE_BYTES = 1_000_000_000  # of the disk, which a cache leaves free
LARGEST_MEMBER = 1_000_000_000  # bytes of an image in an archive, where few can stand for many
# What a file that is no image, or half of one, makes Pillow and zipfile raise.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # a password, or a method of compression that Python lacks
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    Image.DecompressionBombError,
)


def fingerprint(listing: Listing) -> str:
    """Return a hex digest of all that a listing says, and of the contents of its images.

    Contents are read again only after a name, a size or a time of change has changed.

    Raises:
        FileNotFoundError: images of the list are missing.
        ValueError: an image file is empty.
    """
    kept = cache_folder() / "fingerprints" / stamp(listing)
    if kept.exists():
        return kept.read_text()
    digest = hashlib.sha256()

    def content_of(row: int) -> bytes:
        with _named(listing, row):
            return hashlib.sha256(read(listing, row)).digest()

    contents = in_parallel("checking files", content_of, listing)
    for file, label, content in zip(listing.files, listing.labels, contents, strict=True):
        digest.update(os.fsencode(f"{_member(file)} {label}\n") + content)
    digest.update(_roles(listing))
    found = "generated-" * listing.is_generated + digest.hexdigest()
    with write_atomically(kept) as temporary:
        temporary.write_text(found)
    return found


def stamp(listing: Listing) -> str:
    """Return a hex digest of names, labels, sizes and times, which changes where images may have.

    Raises:
        FileNotFoundError: images of the list are missing.
        ValueError: an image file is empty.
    """
    states = repr(_states(listing)).encode()
    return hashlib.sha256(bytes(listing.root) + states + _roles(listing)).hexdigest()


def decoded_images(
    listing: Listing, content: str, image_size: int
) -> tuple["Tensor | ImagesOnDisk", Tensor]:
    """Return (N, 3, S, S) uint8 images and (N, 2) int64 original heights and widths.

    The images are memory-mapped from the cache, and decoded into it on first use. Where the disk
    is too small for that, they are decoded anew for every batch.

    Args:
        listing: the images.
        content: their fingerprint.
        image_size: side S of the kept images, pixels.
    """
    name = f"images/{content.removeprefix('generated-')[:16]}-{DECODER}-{image_size}"
    count, needed = len(listing.files), len(listing.files) * 3 * image_size**2
    if not is_cached(name):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free + bytes_begun(name)
        if needed + SPARE_BYTES > free:
            print(
                f"{count:,} images of {image_size} px need {needed / 1e9:.1f} GB, but {folder} has "
                f"{free / 1e9:.1f} GB free: decoding them for every batch, which is slower; make "
                "room or set DMLKIT_CACHE to a folder on another disk"
            )
            return ImagesOnDisk(listing, image_size), _original_sizes(listing, content)
        print(f"decoding {count:,} images to {image_size} px, once: {needed / 1e9:.2f} GB")

    def fill(arrays: dict[str, np.ndarray]) -> None:
        decoded = in_parallel("decoding", lambda row: decode(listing, row, image_size), listing)
        for row, (image, size) in enumerate(decoded):
            arrays["images"][row], arrays["sizes"][row] = image, size

    shapes = {
        "images": ((count, 3, image_size, image_size), np.uint8),
        "sizes": ((count, 2), np.int64),
    }
    arrays = cached_arrays(name, shapes, fill)
    return arrays["images"], arrays["sizes"]


class ImagesOnDisk:
    """Decodes images when they are asked for; stands in for a tensor of all of them.

    Args:
        listing: the images.
        image_size: side of the decoded images, pixels.
    """

    def __init__(self, listing: Listing, image_size: int) -> None:
        self.listing = listing
        self.shape = (len(listing.files), 3, image_size, image_size)

    def __len__(self) -> int:
        """Return the number of images, N."""
        return self.shape[0]

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Return the images ``rows`` (B,) as (B, 3, S, S) uint8; ``dim`` is 0, as for a tensor."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda r: decode(self.listing, r, self.shape[-1])[0], rows.tolist())
            return torch.stack(list(decoded))


def read(listing: Listing, row: int) -> bytes:
    """Return the content of one image file."""
    archive, _, member = listing.files[row].rpartition(".zip/")
    if archive:
        opened = _open(listing.root / f"{archive}.zip")
        if (size := opened.getinfo(member).file_size) > LARGEST_MEMBER:
            raise ValueError(f"it would be unpacked to {size / 1e9:.1f} GB")
        return opened.read(member)
    return (listing.root / member).read_bytes()


def decode(listing: Listing, row: int, image_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Return one image as (3, S, S) uint8 RGB, and its original height and width.

    The ratio of height and width is not kept. Grey becomes RGB, an alpha channel is dropped, and
    16 bits become 8.

    Raises:
        ValueError: the file is not an image that can be decoded.
    """
    with _named(listing, row):
        pixels = decode_rgb(read(listing, row))
    # Channels side by side are resized twice as fast as channels apart.
    return resize(pixels, [image_size, image_size], antialias=True), tuple(pixels.shape[1:])


def decode_rgb(data: bytes) -> Tensor:
    """Return the image in ``data`` as (3, H, W) uint8, the channels of a pixel side by side.

    By Pillow, whose pixels of a JPEG equal torchvision's: that would be a quarter faster, resizing
    included, but is deprecated since torchvision 0.29, and knows fewer kinds of images.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey instead of scaling
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if "transparency" in image.info:  # else Pillow warns that it drops it
            image = image.convert("RGBA")
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _roles(listing: Listing) -> bytes:
    """Return what a split depends on besides the labels."""
    arrays = (listing.is_gallery, listing.groups)
    said = [None if array is None else array.tolist() for array in arrays]
    return repr((listing.num_train, *said)).encode()


# Only what makes the pixels, because decoding a large data set again can take an hour.
DECODER = hashlib.sha256(
    (inspect.getsource(decode) + inspect.getsource(decode_rgb)).encode()
).hexdigest()[:8]


def missing_files(listing: Listing) -> list[str]:
    """Return the images of the list that are not there."""
    return [file for file in listing.files if _size_and_time(listing.root, file) is None]


def _states(listing: Listing) -> list[tuple]:
    """Return the name, label, size and time of each image, all of which must be there."""
    states = [_size_and_time(listing.root, file) for file in listing.files]
    missing = [f for f, state in zip(listing.files, states, strict=True) if state is None]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(listing.files):,} listed images are missing below "
            f"{listing.root}, e.g. {missing[0]}; unpack the data set again, completely"
        )
    empty = [f for f, (size, _) in zip(listing.files, states, strict=True) if not size]
    if empty:
        raise ValueError(
            f"{len(empty):,} of {len(listing.files):,} image files below {listing.root} are empty, "
            f"e.g. {empty[0]}; unpack the data set again"
        )
    return list(zip(map(os.fsencode, listing.files), listing.labels.tolist(), states, strict=True))


def _size_and_time(root: Path, file: str) -> tuple[int, int] | None:
    """Return the bytes of an image file and its time of change, or its checksum in an archive."""
    archive, _, member = file.rpartition(".zip/")
    try:
        if archive:
            info = _open(root / f"{archive}.zip").getinfo(member)
            return info.file_size, info.CRC
        if "\0" in file:  # a damaged list; no file has such a name
            return None
        state = os.stat(root / member)
    except (FileNotFoundError, NotADirectoryError, KeyError):
        return None
    return state.st_size, state.st_ctime_ns  # when content changed, which no tool can set back


def _open(archive: Path) -> zipfile.ZipFile:
    """Return an open archive; several threads may read from it."""
    return _opened(archive, archive.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(archive: Path, changed: int) -> zipfile.ZipFile:
    """Return an archive, opened again after it has changed."""
    return open_archive(archive)


def _member(file: str) -> str:
    """Return the name of an image, the same whether its archive is unpacked or not."""
    return file.rpartition(".zip/")[2]


def _original_sizes(listing: Listing, content: str) -> Tensor:
    """Return (N, 2) heights and widths, read from the heads of the files."""

    def size(row: int) -> tuple[int, int]:
        with _named(listing, row), Image.open(io.BytesIO(read(listing, row))) as image:
            return image.height, image.width

    def fill(arrays: dict[str, np.ndarray]) -> None:
        arrays["sizes"][:] = list(in_parallel("measuring", size, listing))

    shapes = {"sizes": ((len(listing.files), 2), np.int64)}
    return cached_arrays(f"sizes/{content.removeprefix('generated-')[:16]}", shapes, fill)["sizes"]


def in_parallel(what: str, do: Callable[[int], Result], listing: Listing) -> Iterator[Result]:
    """Yield ``do(row)`` for every image in order, from one thread per core, with a progress bar.

    Only a few results wait at a time, however many images there are.
    """
    rows, width = range(len(listing.files)), 4 * os.cpu_count()
    progress = tqdm(
        total=len(rows), desc=what, unit=" images", file=sys.stdout, ascii=True, mininterval=1
    )
    # Threads suffice: reading, decoding, resizing and hashing happen outside the interpreter lock.
    with progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = []
        for row in rows:
            waiting.append(pool.submit(do, row))
            if len(waiting) == width:
                yield waiting.pop(0).result()
                progress.update()
        for future in waiting:
            yield future.result()
            progress.update()


@contextmanager
def _named(listing: Listing, row: int) -> Iterator[None]:
    """Name the image in the error of one that cannot be read or decoded."""
    path = listing.root / listing.files[row]
    try:
        yield
    except PermissionError as error:
        raise PermissionError(f"{path} may not be read; change its permissions") from error
    except UNREADABLE as error:
        is_other = isinstance(error, UnidentifiedImageError)
        reason = "it is no image of a known kind" if is_other else error
        raise ValueError(
            f"{path} cannot be decoded ({reason}); replace it, or unpack the data set again"
        ) from error
