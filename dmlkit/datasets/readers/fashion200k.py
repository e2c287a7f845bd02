"""Fashion200k: the pool of unlabelled clothes beside In-Shop (Han et al., ICCV 2017)."""

from pathlib import Path

from dmlkit.datasets.readers.listing import (
    About,
    Listing,
    filter_sizes,
    find_root,
    make_listing,
    read_lines,
)

ABOUT = About(
    title="Fashion200k (Han et al., ICCV 2017)",
    published={},  # about 201,600 images; the exact numbers differ between copies
    folders=("Fashion200k", "fashion200k", "fashion-200k"),
    needed=("labels",),
    where="https://github.com/xthan/fashion-200k (women.tar.gz and labels/)",
    unpack="tar xzf women.tar.gz, which makes women/; put labels/ beside it",
    terms="photographs crawled from Lyst.com; research only",
)
SLADE_CLASSES, SLADE_IMAGES = 1045, 14635


def list_images(root: Path) -> Listing:
    """List ``labels/<kind>_{train,test}_detect_all.txt``: image, detection score, description.

    Images with one description in one category are taken for one class: SLADE's items hold 14
    images on average, far more than a product of this set has.
    """
    root = find_root("fashion200k", ABOUT, root)
    labels = sorted((root / "labels").glob("*_detect_all.txt"))
    if not labels:
        raise FileNotFoundError(
            f"{root / 'labels'} holds no *_detect_all.txt; run `dmlkit data fashion200k` to see "
            "where to get them"
        )
    rows = [line.split(maxsplit=2) for path in labels for line in read_lines(path)]
    # Without a description there is nothing here that says which item an image shows.
    rows = sorted(row for row in rows if len(row) == 3)
    items = [f"{file.rsplit('/', 3)[0]}: {description}" for file, _, description in rows]
    return make_listing(root, [row[0] for row in rows], items, len(set(items)) // 2, {})


def select_images(listing: Listing) -> Listing:
    """Return the part of it that stands for SLADE's 1,045 items and 14,635 images.

    Their selection is not published. Here it is all items of middling size, the bounds chosen so
    that both totals come nearest (``nearest_filter``).
    """
    return filter_sizes(listing, SLADE_CLASSES, SLADE_IMAGES)
