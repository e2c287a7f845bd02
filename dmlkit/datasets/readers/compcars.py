"""CompCars: the pool of unlabelled cars beside Cars-196 (Yang et al., CVPR 2015)."""

from pathlib import Path

import numpy as np

from dmlkit.datasets.readers.listing import About, Listing, find_root, make_listing, nearest_filter

ABOUT = About(
    title="CompCars, web-nature photographs (Yang, Luo, Loy and Tang, CVPR 2015)",
    published={"all": (136726, 1716)},
    folders=("CompCars", "compcars"),
    needed=("image", "data/image"),
    where="http://mmlab.ie.cuhk.edu.hk/datasets/comp_cars/ (the password comes with the terms)",
    unpack="join and unzip data.zip, which makes data/image/<make>/<model>/<year>/",
    terms="non-commercial research",
)
SLADE_CLASSES, SLADE_IMAGES = 145, 16537


def list_images(root: Path) -> Listing:
    """List all models of ``image/<make>/<model>/<year>/<name>.jpg``."""
    root = find_root("compcars", ABOUT, root)
    folder = next(root / name for name in ABOUT.needed if (root / name).is_dir())
    paths = sorted(p.relative_to(folder) for p in folder.glob("*/*/*/*.jpg") if p.name[0] != ".")
    models = [path.parts[:2] for path in paths]
    prefix = folder.relative_to(root).as_posix()
    files = [f"{prefix}/{path.as_posix()}" for path in paths]
    ids = [f"{int(make):04d}/{int(model):04d}" for make, model in models]
    return make_listing(root, files, ids, len(set(ids)) // 2, {})


def select_images(listing: Listing) -> Listing:
    """Return the part of it that stands for SLADE's 145 classes and 16,537 images.

    Their selection is not published. Here it is all models of middling size, the bounds chosen so
    that both totals come nearest (``nearest_filter``).
    """
    return filter_sizes(listing, SLADE_CLASSES, SLADE_IMAGES)


def filter_sizes(listing: Listing, num_classes: int, num_images: int) -> Listing:
    """Return the classes whose sizes lie between the bounds that come nearest to the totals."""
    sizes = np.bincount(listing.labels)
    low, high = nearest_filter(sizes, num_classes, num_images)
    return listing.keep_classes(np.flatnonzero((sizes >= low) & (sizes <= high)))
