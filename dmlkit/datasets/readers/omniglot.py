"""Omniglot: 1,623 handwritten characters of 50 alphabets (Lake et al., Science 2015)."""

from pathlib import Path

import numpy as np

from dmlkit.datasets.readers.listing import About, Listing, find_root, make_listing, open_archive

PARTS = ("images_background", "images_evaluation")
ABOUT = About(
    title="Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 2015)",
    published={"all": (32460, 1623), "train": (19280, 964), "test": (13180, 659)},
    folders=("omniglot-py", "Omniglot"),
    needed=("images_background", "images_background.zip"),
    where="https://github.com/brendenlake/omniglot (python/images_background.zip and "
    "python/images_evaluation.zip), or `dmlkit data omniglot --download`",
    unpack="not needed; images_background/ and images_evaluation/ do as well as the archives",
    terms="MIT",
    archives=(
        ("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718"),
        ("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811"),
    ),
)


def list_images(root: Path) -> Listing:
    """List ``images_{background,evaluation}``, folders or archives, by alphabet and character.

    The characters of the background alphabets train, those of the evaluation alphabets test. A
    random split keeps the characters of an alphabet together: they were drawn alike.
    """
    root = find_root("omniglot", ABOUT, root)
    files = [file for part in PARTS for file in _members(root, part)]
    characters = [tuple(file.split("/")[-4:-1]) for file in files]  # part, alphabet, character
    ids = sorted(set(characters))
    alphabets = sorted({i[:2] for i in ids})
    return make_listing(
        root,
        files,
        characters,
        sum(part == PARTS[0] for part, _, _ in ids),
        {(part, alphabet, name): f"{alphabet}/{name}" for part, alphabet, name in ids},
        groups=np.array([alphabets.index(i[:2]) for i in ids]),
    )


def _members(root: Path, part: str) -> list[str]:
    """Return the images of one part, in its folder or its archive."""
    if (root / part).is_dir():
        paths = (root / part).glob("*/*/*.png")
        return sorted(p.relative_to(root).as_posix() for p in paths if p.name[0] != ".")
    archive = root / f"{part}.zip"
    try:
        with open_archive(archive) as opened:
            # Archives made by macOS hold "._name.png" files that only look like images.
            names = [n for n in opened.namelist() if n.endswith(".png") and "/." not in n]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{root} has neither {part} nor {part}.zip; run `dmlkit data omniglot` to see where "
            "to get it"
        ) from None
    return [f"{archive.name}/{name}" for name in sorted(names)]
