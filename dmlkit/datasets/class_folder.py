"""Images in one folder per class, decoded once into a memory-mapped cache."""

import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dmlkit.datasets.cache import cached_array
from dmlkit.datasets.image_set import ImageSet

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@lru_cache(maxsize=4)  # every replicate of a chapter reads the same folder
def read_class_folder(root: Path, image_size: int) -> ImageSet:
    """Read ``root/<class name>/<image>`` as an ImageSet, classes in sorted folder order.

    Images are converted to RGB, resized to a square of ``image_size`` pixels and kept under the
    project's ``.cache`` folder, keyed by the content of the files.

    Args:
        root: folder that holds one folder per class.
        image_size: side of the kept images, pixels.

    Raises:
        FileNotFoundError: ``root`` is missing or holds no class folder.
        ValueError: a class has fewer than two images, or an image cannot be decoded.
    """
    paths, labels, class_names = list_class_folder(root)
    fingerprint = fingerprint_files(paths, root)
    images = decoded_images(paths, fingerprint, image_size)
    labels = torch.tensor(labels)
    return ImageSet(images, labels, class_names, fingerprint, torch.arange(len(labels)))


def list_class_folder(root: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Return the image paths, their class numbers and the class names under ``root``."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; set DATA_DIR to the folder that holds the images"
        )
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise FileNotFoundError(
            f"{root} holds no class folders; expected {root.name}/<class name>/<image>.jpg"
        )
    paths, labels = [], []
    for label, folder in enumerate(folders):
        # macOS archives leave "._name.jpg" files that only look like images.
        files = sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        if len(files) < 2:
            raise ValueError(
                f"class folder {folder} holds {len(files)} image(s), and a class needs at least 2 "
                "for a query to have something to find; add images or remove the folder"
            )
        paths += files
        labels += [label] * len(files)
    return paths, labels, tuple(folder.name for folder in folders)


def fingerprint_files(paths: list[Path], root: Path) -> str:
    """Return one hex digest of the relative names and the contents of the files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def decoded_images(paths: list[Path], fingerprint: str, image_size: int) -> torch.Tensor:
    """Return (N, 3, S, S) uint8 images, memory-mapped from the cache and decoded on first use."""

    def decode_all(store: np.ndarray) -> None:
        # Threads suffice: Pillow decodes and resizes outside the interpreter lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = pool.map(lambda path: decode(path, image_size), paths)
            progress = tqdm(
                decoded, "decoding", len(paths), unit=" images", file=sys.stdout, ascii=True
            )
            for row, image in enumerate(progress):
                store[row] = image

    decoder = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    name = f"images/{fingerprint[:16]}-{decoder}-{image_size}"
    shape = (len(paths), 3, image_size, image_size)
    return cached_array(name, shape, np.uint8, decode_all)


def decode(path: Path, image_size: int) -> np.ndarray:
    """Return one image as (3, S, S) uint8 RGB, resized without keeping its aspect ratio."""
    try:
        with Image.open(path) as image:
            size = (image_size, image_size)
            if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey instead of scaling
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            image = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error}); replace or remove it") from error
    return np.asarray(image).transpose(2, 0, 1)
