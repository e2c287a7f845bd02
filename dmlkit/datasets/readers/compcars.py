"""CompCars: the pool of unlabelled cars beside Cars-196 (Yang et al., CVPR 2015)."""

from pathlib import Path

from dmlkit.datasets.readers.listing import About, Listing, filter_sizes, find_root, make_listing

ABOUT = About(
    title="CompCars, web-nature photographs (Yang, Luo, Loy and Tang, CVPR 2015)",
    published={"all": (136726, 1716)},
    folders=("CompCars", "compcars"),
    needed=("image", "data/image"),
    where="http://mmlab.ie.cuhk.edu.hk/datasets/comp_cars/ (the password comes with the terms)",
    unpack="join and unzip data.zip, which makes data/image/<make>/<model>/<year>/",
    terms="non-commercial research",
    is_certain=False,
)
SLADE_CLASSES, SLADE_IMAGES = 145, 16537


def list_images(root: Path) -> Listing:
    """List all models of ``image/<make>/<model>/<year>/<name>.jpg``."""
    root = find_root("compcars", ABOUT, root)
    folder = next(root / name for name in ABOUT.needed if (root / name).is_dir())
    paths = [p.relative_to(folder) for p in folder.glob("*/*/*/*.jpg") if p.name[0] != "."]
    paths = sorted(p for p in paths if p.parts[0].isdigit() and p.parts[1].isdigit())
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
