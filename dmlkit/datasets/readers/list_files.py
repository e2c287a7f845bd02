"""Images named by plain list files, as bnu-wangxun/Deep_Metric and research-ms-loss have them."""

import re
from pathlib import Path

import numpy as np

from dmlkit.datasets.readers.listing import About, Listing, find_root, make_listing, read_lines

ABOUT = About(
    title="your own lists, in the format of bnu-wangxun/Deep_Metric",
    published={},
    folders=(),
    needed=("train.txt",),
    where="beside your images",
    unpack="train.txt with test.txt, or with query.txt and gallery.txt; one 'path label' per line, "
    "paths from the folder of the lists",
    terms="yours",
)
# A path, which may hold spaces, up to its suffix; then a space, a tab or a comma, and the label.
LINE = re.compile(r"(.+\.[A-Za-z]+)[ \t]*[ \t,][ \t]*(\d{1,18})\b")


def list_images(root: Path) -> Listing:
    """List ``train.txt`` and ``test.txt``, or ``query.txt`` and ``gallery.txt``, below ``root``."""
    root = find_root("list_files", ABOUT, root)
    parts = ("train", "query", "gallery") if (root / "query.txt").exists() else ("train", "test")
    if missing := [f"{part}.txt" for part in parts if not (root / f"{part}.txt").exists()]:
        raise FileNotFoundError(
            f"{root} has no {missing[0]}; write train.txt with test.txt, or with query.txt and "
            "gallery.txt"
        )
    rows = [(part, *row) for part in parts for row in _read(root / f"{part}.txt")]
    train = {label for part, _, label in rows if part == "train"}
    test = {label for part, _, label in rows if part != "train"}
    if shared := train & test:
        raise ValueError(
            f"the lists in {root} have {len(shared):,} classes both in train.txt and among the "
            f"test images, e.g. {min(shared)}; metric learning is tested on classes it was not "
            "trained on, so give each class to one of them, with numbers of its own"
        )
    searched = {label for part, _, label in rows if part == "gallery"}
    if len(parts) == 3 and not searched & {label for part, _, label in rows if part == "query"}:
        raise ValueError(
            f"no class of query.txt in {root} occurs in gallery.txt; correct one of them"
        )
    return make_listing(
        root,
        [file for _, file, _ in rows],
        [(part != "train", label) for part, _, label in rows],  # training classes come first
        len(train),
        {(is_test, label): label for is_test, ids in enumerate((train, test)) for label in ids},
        is_gallery=np.array([row[0] == "gallery" for row in rows]) if len(parts) == 3 else None,
    )


def _read(path: Path) -> list[tuple[str, int]]:
    """Return the file name and the class of each line."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not (match := LINE.match(line)):
            raise ValueError(
                f"line {number} of {path} is {line[:200]!r}; expected a path and the number of "
                "its class, like 'images/wren/1.jpg 17', in UTF-8"
            )
        rows.append((match[1], int(match[2])))
    if not rows:
        raise ValueError(f"{path} names no images; give each on a line, like 'wren/1.jpg 17'")
    return rows
