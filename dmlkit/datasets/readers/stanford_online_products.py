"""Stanford Online Products: 22,634 products for sale (Oh Song et al., CVPR 2016)."""

import re
from pathlib import Path

from dmlkit.datasets.readers.listing import About, Listing, find_root, make_listing, read_lines

ABOUT = About(
    title="Stanford Online Products (Oh Song, Xiang, Jegelka and Savarese, CVPR 2016)",
    published={"all": (120053, 22634), "train": (59551, 11318), "test": (60502, 11316)},
    folders=("Stanford_Online_Products",),
    needed=("Ebay_train.txt",),
    where="ftp://cs.stanford.edu/cs/cvgl/Stanford_Online_Products.zip (2.9 GB); see also "
    "https://github.com/rksltnl/Deep-Metric-Learning-CVPR16",
    unpack="unzip Stanford_Online_Products.zip, which makes the folder Stanford_Online_Products",
    terms="photographs of eBay sellers; research only",
    archives=(("Stanford_Online_Products.zip", "7f73d41a2f44250d4779881525aea32e"),),
)


def list_images(root: Path) -> Listing:
    """List ``Ebay_train.txt`` and ``Ebay_test.txt``: image id, class id, super class id, path."""
    root = find_root("stanford_online_products", ABOUT, root)
    train, test = (
        [line.split(maxsplit=3) for line in read_lines(root / f"Ebay_{part}.txt")[1:]]
        for part in ("train", "test")
    )
    rows = train + test
    if any(len(row) != 4 or not re.fullmatch(r"\d{1,18}", row[1]) for row in rows):
        raise ValueError(
            f"{root} has a list whose lines are not 'image_id class_id super_class_id path'; "
            "unpack the data set again"
        )
    num_train = len({row[1] for row in train})
    return make_listing(root, [r[3] for r in rows], [int(r[1]) for r in rows], num_train, {})
