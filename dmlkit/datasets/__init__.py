"""The data sets of the book, all read by ``load``."""

import hashlib
from pathlib import Path

import numpy as np
import torch

from dmlkit.datasets.aviary import draw_aviary
from dmlkit.datasets.cache import cached_array
from dmlkit.datasets.class_folder import read_class_folder
from dmlkit.datasets.image_set import ImageSet, Splits, split_classes
from dmlkit.paths import resolve

__all__ = ["DATASETS", "PICTURES_MAY_BE_SHOWN", "ImageSet", "Splits", "load", "split_classes"]

DATASETS = ("aviary", "class_folder", "cub200_2010")
# Photographs of the research sets must not be redistributed, so figures that show them stay local.
PICTURES_MAY_BE_SHOWN = {"aviary"}


def load(
    name: str,
    root: str | Path,
    *,
    image_size: int,
    protocol: str = "official",
    seed: int = 0,
    selection: str = "last",
    max_classes: int = 0,
    max_images_per_class: int = 0,
) -> Splits:
    """Load a data set and split it by class.

    Args:
        name: ``aviary`` (drawn here, half of the species for testing), ``cub200_2010`` (official
            layout) or ``class_folder`` (any folder of class folders, first half for training).
        root: the folder that holds the data set; the drawn one needs none.
        image_size: side in pixels at which images are kept.
        protocol: ``official`` classes, or ``random`` ones redrawn with ``seed``. The aviary has
            no official classes: there it means the species of seed 0.
        seed: the replicate.
        selection: ``validation`` holds out the last 20 % of the training classes for choosing steps
            and settings; ``last`` trains on all of them.
        max_classes: use only the first classes, for a quick look; 0 uses all.
        max_images_per_class: use only the first images of each class; 0 uses all.

    Raises:
        ValueError: an unknown choice, or data that do not follow the published protocol.
        FileNotFoundError: missing data, with the place where they were expected.
    """
    if selection not in ("validation", "last"):
        raise ValueError(f"SELECTION={selection!r} is unknown; choose validation or last")
    if name == "aviary":
        drawn_seed = seed if protocol == "random" else 0
        everything = _aviary(max_classes or 100, max_images_per_class or 24, drawn_seed, image_size)
        num_train = everything.num_classes // 2
        # Random species are a random split already; splitting at random again would add nothing.
        protocol = "official" if protocol == "random" else protocol
    elif name == "class_folder":
        everything = read_class_folder(resolve(root), image_size)
        num_train = everything.num_classes // 2
    elif name == "cub200_2010":
        everything = _cub200_2010(resolve(root), image_size)
        num_train = 100
    else:
        raise ValueError(f"DATASET={name!r} is unknown; choose one of {', '.join(DATASETS)}")
    if name != "aviary" and max_images_per_class:
        everything = everything.keep_images_per_class(max_images_per_class)
    if name != "aviary" and max_classes:
        halves = torch.arange(num_train), torch.arange(num_train, everything.num_classes)
        everything = everything.keep_classes(torch.cat([h[: max_classes // 2] for h in halves]))
        num_train = min(num_train, max_classes // 2)
    return split_classes(
        everything,
        num_train,
        protocol=protocol,
        seed=seed,
        validation_fraction=0.2 if selection == "validation" else 0.0,
    )


def _aviary(num_classes: int, images_per_class: int, seed: int, image_size: int) -> ImageSet:
    """Draw the aviary, or memory-map an earlier drawing of it."""
    modules = sorted(Path(__file__).parent.glob("aviary*.py"))
    key = hashlib.sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()[:12]
    name = f"aviary-{key}-{num_classes}x{images_per_class}-seed{seed}-{image_size}"

    def draw(store: np.ndarray) -> None:
        drawn = draw_aviary(num_classes, images_per_class, seed, image_size=image_size)
        store[:] = drawn.images

    shape = (num_classes * images_per_class, 3, image_size, image_size)
    images = cached_array(f"images/{name}", shape, np.uint8, draw)
    labels = torch.arange(num_classes).repeat_interleave(images_per_class)
    # Species of different seeds have nothing but their number in common, so neither have names.
    names = tuple(f"species {label:03d} of seed {seed}" for label in range(num_classes))
    fingerprint = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return ImageSet(images, labels, names, fingerprint, torch.arange(len(labels)))


def _cub200_2010(root: Path, image_size: int) -> ImageSet:
    """Read CUB-200 (Welinder et al. 2010); its 2011 successor has 11,788 images, not 6,033."""
    everything = read_class_folder(root / "images", image_size)
    if (everything.num_classes, len(everything)) != (200, 6033):
        raise ValueError(
            f"{root} holds {len(everything)} images of {everything.num_classes} classes, but "
            "CUB-200 (2010) has 6,033 of 200; unpack it again, or use DATASET=class_folder"
        )
    return everything
