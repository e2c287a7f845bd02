"""The data sets of the book, all read by ``load``."""

import os
from dataclasses import replace
from pathlib import Path

import torch

from dmlkit.datasets.decoding import decoded_images, fingerprint
from dmlkit.datasets.drawn import FAMILIES, load_drawn
from dmlkit.datasets.image_set import ImageSet
from dmlkit.datasets.readers import READERS
from dmlkit.datasets.readers.listing import Listing, check_counts
from dmlkit.datasets.splitting import Splits, check_choices, split_classes
from dmlkit.paths import resolve

__all__ = [
    "DATASETS",
    "FAMILIES",
    "PICTURES_MAY_BE_SHOWN",
    "READERS",
    "ImageSet",
    "Splits",
    "list_images",
    "load",
    "split_classes",
]

DATASETS = (*FAMILIES, *READERS)
# Photographs of the research sets must not be redistributed, so figures that show them stay local.
PICTURES_MAY_BE_SHOWN = {*FAMILIES, "omniglot"}


def load(
    name: str,
    root: str | Path = "data",
    *,
    image_size: int,
    short_side: int = 0,
    protocol: str = "official",
    fold: int | None = None,
    seed: int = 0,
    selection: str = "last",
    pool: str = "none",
    pool_root: str | Path = "",
    pool_share: float = 0.0,
    set_aside: float = 0.0,
    pattern_share: float = 0.5,
    max_classes: int = 0,
    max_images_per_class: int = 0,
) -> Splits:
    """Load a data set and split it by class.

    Args:
        name: one of ``DATASETS``: ``aviary`` and ``butterflies`` are drawn here, ``class_folder``
            is any folder of class folders and ``list_files`` any images named by lists; the others
            are read in their official layouts and checked against their published counts.
        root: the folder that holds the data set, or the folder of that one; drawn data need none.
        image_size: side in pixels at which images are kept.
        short_side: above 0, transforms crop from photographs in their own shape, the shorter side
            resized to so many pixels (torchvision's ``Resize(S)``); 0 crops from the squares that
            are kept (``Resize((S, S))``).
        protocol: ``official`` classes, ``random`` ones redrawn with ``seed``, or the halves of
            the ``reality_check``. Omniglot keeps the characters of an alphabet together.
        fold: 0 to 3 holds out that quarter of the training classes for validation (the Reality
            Check's cross-validation); None goes by ``selection``.
        seed: the replicate.
        selection: ``validation`` holds out the last 20 % of the training classes for choosing steps
            and settings; ``last`` trains on all of them.
        pool: unlabelled images: ``none``; ``other_classes``, ``labelled_classes`` or
            ``test_classes`` of this data set (see ``split_classes``); or another data set's name,
            whose classes may be test classes of this one (see ``Splits``).
        pool_root: the folder that holds that other data set; empty for ``root``.
        pool_share: share of the training classes that become ``other_classes``; drawn data have
            further species for that.
        set_aside: share of the images of every class kept for pools alone; of drawn species there
            are always further images.
        pattern_share: of drawn data, how much pattern and shape tell species apart, not colour.
        max_classes: use only the first classes, for a quick look; 0 uses all.
        max_images_per_class: use only the first images of each class; 0 uses all.

    Raises:
        ValueError: an unknown choice, or data that do not follow the published protocol.
        FileNotFoundError: missing data, with the place where they were expected.
    """
    if name not in DATASETS:
        raise ValueError(f"DATASET={name!r} is unknown; choose one of {', '.join(DATASETS)}")
    if selection not in ("validation", "last"):
        raise ValueError(f"SELECTION={selection!r} is unknown; choose validation or last")
    limits = {"max_classes": max_classes, "max_images_per_class": max_images_per_class}
    split = {"protocol": protocol, "fold": fold, "seed": seed}
    split["validation_fraction"] = 0.2 if selection == "validation" else 0.0
    if name in FAMILIES:
        look = {"image_size": image_size, "pattern_share": pattern_share}
        return load_drawn(name, pool=pool, **look, **split, **limits)
    own_pool = "none" if pool in READERS else pool
    check_choices(protocol, fold, own_pool, pool_share, set_aside)  # before hours of decoding
    listing = list_images(name, root).limited(**limits)
    if pool in READERS:
        pooled = list_images(pool, pool_root or root).limited(**limits)
        _refuse_shared_files(pool, pooled, listing)
    splits = split_classes(
        read_images(listing, image_size, short_side),
        listing.num_train,
        groups=None if listing.groups is None else torch.from_numpy(listing.groups),
        is_gallery=None if listing.is_gallery is None else torch.from_numpy(listing.is_gallery),
        pool=own_pool,
        pool_share=pool_share,
        set_aside=set_aside,
        **split,
    )
    if pool in READERS:
        return replace(splits, unlabelled=read_images(pooled, image_size, short_side))
    return splits


def _refuse_shared_files(pool: str, pooled: Listing, listing: Listing) -> None:
    """Raise if a pool holds files of the data set itself, and so of its test classes."""
    files, own = (
        {os.path.join(os.path.realpath(part.root), file) for file in part.files}
        for part in (pooled, listing)
    )
    if shared := files & own:
        raise ValueError(
            f"POOL={pool!r} holds {len(shared):,} images of the data set itself, e.g. "
            f"{min(shared)}; choose other_classes, labelled_classes or test_classes of it"
        )


def list_images(name: str, root: str | Path) -> Listing:
    """Return the images of the data set called ``name``, after the guard of its protocol.

    Raises:
        ValueError: the files do not follow the published protocol.
        FileNotFoundError: they are not there.
    """
    if name not in READERS:
        raise ValueError(f"DATASET={name!r} is unknown; choose one of {', '.join(DATASETS)}")
    reader = READERS[name]
    listing = reader.list_images(resolve(root))
    check_counts(name, reader.ABOUT, listing)
    return reader.select_images(listing) if hasattr(reader, "select_images") else listing


def read_images(listing: Listing, image_size: int, short_side: int = 0) -> ImageSet:
    """Return the images of ``listing``, decoded; for the arguments see ``load``."""
    content = fingerprint(listing)
    images, original = decoded_images(listing, content, image_size)
    sizes = None
    if short_side:  # rounded down, as torchvision does
        sizes = short_side * original // original.min(dim=1, keepdim=True).values
    labels = torch.from_numpy(listing.labels)
    index = torch.arange(len(labels))
    return ImageSet(images, labels, listing.class_names, content, index, sizes)
