"""CUB-200 of 2010: 200 bird species, the first 100 for training (Welinder et al., 2010)."""

from dataclasses import replace
from pathlib import Path

from dmlkit.datasets.readers.class_folder import list_class_folder
from dmlkit.datasets.readers.listing import About, Listing, find_root

ABOUT = About(
    title="Caltech-UCSD Birds 200 (Welinder et al., 2010)",
    published={"all": (6033, 200), "train": (2990, 100), "test": (3043, 100)},
    folders=("CUB_200_2010", "CUB-200"),
    needed=("images",),
    where="https://www.vision.caltech.edu/datasets/ (images.tgz of CUB-200, not of CUB-200-2011)",
    unpack="tar xzf images.tgz, which makes images/<001.Class_name>/, in a folder cub200_2010",
    terms="photographs from the web; non-commercial research and education",
)


def list_images(root: Path) -> Listing:
    """List ``images/<001.Class_name>/<image>.jpg``.

    Its successor of 2011 has 11,788 images of the same species: never compare the numbers of one
    with the other's, nor take one for the unlabelled pool of the other.
    """
    root = find_root("cub200_2010", ABOUT, root)
    listing = list_class_folder(root, "images")
    return replace(listing, num_train=sum(name < "101" for name in listing.class_names))
