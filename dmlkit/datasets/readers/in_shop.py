"""In-Shop Clothes Retrieval: queries against a gallery (DeepFashion; Liu et al., CVPR 2016)."""

from pathlib import Path

import numpy as np

from dmlkit.datasets.readers.listing import About, Listing, find_root, make_listing, read_lines

ABOUT = About(
    title="In-Shop Clothes Retrieval of DeepFashion (Liu, Luo, Qiu, Wang and Tang, CVPR 2016)",
    published={
        "all": (52712, 7982),
        "train": (25882, 3997),
        "query": (14218, 3985),
        "gallery": (12612, 3985),
    },
    folders=("In-shop_Clothes_Retrieval_Benchmark", "In_shop_Clothes_Retrieval_Benchmark"),
    needed=("Eval/list_eval_partition.txt", "list_eval_partition.txt"),
    where="http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html (img.zip of "
    "256 x 256 px and list_eval_partition.txt)",
    unpack="unzip img.zip, which makes img/; leave list_eval_partition.txt beside it or in Eval/",
    terms="non-commercial research, agreement with the Chinese University of Hong Kong",
)


def list_images(root: Path) -> Listing:
    """List ``list_eval_partition.txt``: image, item and part (train, query or gallery).

    Training items have one image now and then. Queries and gallery share their items.
    """
    root = find_root("in_shop", ABOUT, root)
    path = next(root / file for file in ABOUT.needed if (root / file).exists())
    lines = read_lines(path)[2:]  # after their number, and the names of the columns
    rows = [line.split() for line in lines]
    if any(len(row) != 3 or row[2] not in ("train", "query", "gallery") for row in rows):
        raise ValueError(f"{path} has a line that is not 'image item part'; download it again")
    train = {item for _, item, part in rows if part == "train"}
    test = {item for _, item, part in rows if part != "train"}
    if shared := train & test:
        raise ValueError(
            f"{path} has {len(shared):,} items both for training and for testing, e.g. "
            f"{min(shared)}; download it again"
        )
    return make_listing(
        root,
        [row[0] for row in rows],
        [(row[1] in test, row[1]) for row in rows],  # training items come first
        len(train),
        {(in_test, item): item for in_test, items in enumerate((train, test)) for item in items},
        is_gallery=np.array([row[2] == "gallery" for row in rows], dtype=bool),
    )
