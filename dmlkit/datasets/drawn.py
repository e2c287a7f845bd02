"""The drawn families as image sets: drawn when first asked for, cached, with a pool beside them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dmlkit.datasets.cache import cached_arrays
from dmlkit.datasets.drawings.aviary import FACTORS, draw_aviary, pool_counts
from dmlkit.datasets.drawings.butterflies import draw_butterflies
from dmlkit.datasets.image_set import ImageSet
from dmlkit.datasets.splitting import POOLS, Splits, split_classes

HERE = Path(__file__).parent
FAMILIES = {"aviary": draw_aviary, "butterflies": draw_butterflies}
NUM_CLASSES, IMAGES_PER_CLASS = 100, 24


def load_drawn(
    family: str,
    *,
    image_size: int,
    pattern_share: float,
    protocol: str,
    seed: int,
    pool: str,
    max_classes: int,
    max_images_per_class: int,
    **split,
) -> Splits:
    """Draw a family and split it: half of the species train, the others test.

    Drawn data have no official classes; what is called so are the species of seed 0. Random species
    are new for each seed, so they need no random split.

    Args:
        family: one of ``FAMILIES``.
        image_size: side of the images, pixels; a divisor of 192.
        pattern_share: how much pattern and shape rather than colour tells species apart.
        protocol: ``random`` draws the species of ``seed``, the others those of seed 0.
        seed: the replicate.
        pool: ``other_classes`` draws further species, ``labelled_classes`` and ``test_classes``
            further images of those; all have the same number of species, and few or many images of
            each.
        max_classes: at most so many of the 100 species; 0 draws all.
        max_images_per_class: at most so many of the 24 images of each; 0 draws all.
        split: further arguments of ``split_classes``.
    """
    if pool not in POOLS:
        raise ValueError(f"POOL={pool!r} is unknown for drawn data; choose {', '.join(POOLS)}")
    num_classes = min(max_classes or NUM_CLASSES, NUM_CLASSES)
    num_images = min(max_images_per_class or IMAGES_PER_CLASS, IMAGES_PER_CLASS)
    drawn_seed = seed if protocol == "random" else 0
    how = {"image_size": image_size, "pattern_share": pattern_share}
    everything = draw(family, [num_images] * num_classes, drawn_seed, **how)
    num_train = num_classes // 2
    protocol = "official" if protocol == "random" else protocol
    splits = split_classes(everything, num_train, protocol=protocol, seed=seed, **split)
    if pool == "none":
        return splits
    first = {"other_classes": num_classes, "labelled_classes": 0, "test_classes": num_train}[pool]
    counts = pool_counts(num_train, drawn_seed)
    if max_images_per_class:
        counts = [min(count, max_images_per_class) for count in counts]
    drawn = draw(
        family,
        counts,
        drawn_seed,
        first_species=first,
        first_image=0 if pool == "other_classes" else num_images,
        **how,
    )
    classes = torch.arange(splits.train.num_classes)
    if pool == "labelled_classes":  # not the species held out for validation
        classes = torch.tensor([everything.class_names.index(n) for n in splits.train.class_names])
    return replace(splits, unlabelled=drawn.keep_classes(classes))


def draw(
    family: str,
    counts: Sequence[int],
    seed: int,
    *,
    image_size: int,
    pattern_share: float,
    first_species: int = 0,
    first_image: int = 0,
) -> ImageSet:
    """Draw some images of consecutive species, or memory-map an earlier drawing of them.

    Args:
        family: one of ``FAMILIES``.
        counts: number of images of each species.
        seed: the replicate; other seeds have other species.
        image_size: side of the images, pixels.
        pattern_share: how much pattern and shape rather than colour tells species apart.
        first_species: number of the first species.
        first_image: number of the first image of each.
    """
    asked = (family, list(counts), seed, image_size, pattern_share, first_species, first_image)
    sources = [path.read_bytes() for path in sorted((HERE / "drawings").glob("*.py"))]
    key = hashlib.sha256(repr(asked).encode() + b"".join(sources)).hexdigest()[:16]
    names = [*FACTORS, "hidden"]

    def fill(arrays: dict[str, np.ndarray]) -> None:
        drawn = FAMILIES[family](
            len(counts),
            counts,
            seed,
            image_size=image_size,
            pattern_share=pattern_share,
            first_species=first_species,
            first_image=first_image,
        )
        arrays["images"][:] = drawn.images
        for name in names:
            arrays[name][:] = drawn.factors[name]

    total = sum(counts)
    shapes = {name: ((total,), np.int16) for name in names}
    shapes["images"] = ((total, 3, image_size, image_size), np.uint8)
    arrays = cached_arrays(f"drawn/{family}-{key}", shapes, fill)
    images = arrays.pop("images")
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    # Species of different seeds have nothing but their number in common, so neither have names.
    numbers = range(first_species, first_species + len(counts))
    class_names = tuple(f"species {number:03d} of seed {seed}" for number in numbers)
    fingerprint = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    return ImageSet(images, labels, class_names, fingerprint, torch.arange(total), factors=arrays)
