"""Say of a folder of data what is there, whether it is whole, and how to get what is not."""

import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError
from torchvision.datasets import Omniglot

from dmlkit.datasets import READERS
from dmlkit.datasets.decoding import UNREADABLE, decode_rgb, in_parallel, missing_files, read
from dmlkit.datasets.readers.listing import About, Listing, expected_counts, find_root, say_counts


def check_data(name: str, root: Path, *, quick: bool = False) -> tuple[list[str], str]:
    """Return what there is to say about a data set, and whether it is whole, broken or absent.

    Args:
        name: a key of ``READERS``.
        root: the folder that holds it, or the folder of several data sets.
        quick: read the lists only, and do not open every image.
    """
    reader = READERS[name]
    about: About = reader.ABOUT
    lines = [f"{name}: {about.title}"]
    try:
        if about.needed or not root.is_dir():
            find_root(name, about, root)
    except FileNotFoundError:
        missing = f"  not found in {root}: no {' or '.join(about.needed) or 'such folder'}"
        return [*lines, missing, *how_to_get(about, root)], "absent"
    try:
        listing = reader.list_images(root)
    except (OSError, ValueError) as error:
        return [*lines, f"  NOT usable: {error}", *how_to_get(about, root)], "broken"
    lines.append(f"  found in {listing.root}")
    count_lines, right = _compare_counts(about, listing)
    lines += count_lines
    if hasattr(reader, "select_images"):
        selected = reader.select_images(listing)
        lines.append(f"  used of it: {say_counts(selected.counts()['all'])} (of middling size)")
    if missing := missing_files(listing):
        lines.append(f"  MISSING: {len(missing):,} listed images, e.g. {missing[0]}")
        right = False
    elif not quick:
        image_lines, readable = _check_images(listing)
        lines += image_lines
        right = right and readable
    return [*lines, f"  terms of use: {about.terms}"], "whole" if right else "broken"


def how_to_get(about: About, root: Path) -> list[str]:
    """Return where a data set comes from, how to unpack it, and what has been downloaded of it."""
    lines = [f"  get it from: {about.where}", f"  unpack: {about.unpack}"]
    for archive, md5 in about.archives:
        path = root / archive
        if path.exists():
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
            other = f"is NOT the published archive (MD5 {found}): half downloaded, or repacked"
            lines.append(f"  {path} {'is whole' if found == md5 else other}")
        else:
            lines.append(f"  MD5 of {archive}: {md5}")
    return [*lines, f"  terms of use: {about.terms}"]


def download(names: list[str], root: Path) -> None:
    """Let torchvision fetch what it may.

    Raises:
        ValueError: it may not fetch that; the others want a form, a password or a hand.
        OSError: the network or the disk failed.
    """
    if names != ["omniglot"]:
        raise ValueError(
            "only Omniglot may be downloaded by a program: `dmlkit data omniglot --download`; "
            "`dmlkit data NAME` says how to get another"
        )
    for background in (True, False):
        try:
            Omniglot(str(root), background=background, download=True)
        except (RuntimeError, OSError) as error:  # a wrong checksum, no network
            raise OSError(
                f"the download failed ({error}); try again, or get the archives by hand from "
                "https://github.com/brendenlake/omniglot"
            ) from error


def _compare_counts(about: About, listing: Listing) -> tuple[list[str], bool]:
    """Return the counts beside the published ones, and whether they agree."""
    counts, expected = listing.counts(), expected_counts(about, listing.root)
    lines, right = [], True
    if listing.is_generated:
        lines.append("  GENERATED: random images in the layout of the data set; nothing to learn")
    source = "generated" if listing.is_generated else "published"
    for part in expected or counts:
        line = f"  {part}: {say_counts(counts[part])}"
        if part in expected and expected[part] == counts[part]:
            line += f", as {source}"
        elif part in expected:
            line += f"; NOT as {source}: {say_counts(expected[part])}"
            right = False
        lines.append(line)
    if listing.is_gallery is not None:
        searched = np.unique(listing.labels[listing.is_gallery])
        test = listing.labels >= listing.num_train
        lone = (test & ~listing.is_gallery & ~np.isin(listing.labels, searched)).sum()
        lines.append(f"  queries whose class is not in the gallery: {lone}")
    train = {n for c, n in enumerate(listing.class_names) if c < listing.num_train}
    shared = train & set(listing.class_names[listing.num_train :])
    lines.append(f"  classes both for training and for testing: {len(shared)}")
    return lines, right and not shared


def _check_images(listing: Listing) -> tuple[list[str], bool]:
    """Return what is wrong with single images, and whether all can be read."""

    def look(row: int) -> tuple[bytes, str]:
        try:
            data = read(listing, row)
            decode_rgb(data)
        except UnidentifiedImageError:
            return b"", "no image of a known kind" if data else "empty"
        except UNREADABLE as error:
            return b"", str(error) or type(error).__name__
        return hashlib.sha256(data).digest(), ""

    rows_of, unreadable = defaultdict(list), []
    for row, (content, error) in enumerate(in_parallel("opening images", look, listing)):
        if error:
            unreadable.append(f"{listing.files[row]} ({error})")
        else:
            rows_of[content].append(row)
    kinds: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for rows in rows_of.values():
        if len(rows) > 1:
            kind = _kind(listing, rows)
            kinds[kind] += 1
            examples.setdefault(kind, " = ".join(listing.files[row] for row in rows[:3]))
    lines = [
        f"  unreadable images: {len(unreadable)}" + "".join(f"\n    {u}" for u in unreadable[:5])
    ]
    for kind, number in kinds.items():
        warning = "WARNING: " * ("test" in kind)  # what is tested was trained on
        lines.append(f"  {warning}duplicate images {kind}: {number}, e.g. {examples[kind]}")
    return lines if kinds else [*lines, "  duplicate images: 0"], not unreadable


def _kind(listing: Listing, rows: list[int]) -> str:
    """Return what identical images have in common."""
    labels = listing.labels[rows]
    if len({*labels.tolist()}) == 1:
        return "within a class"
    if (labels < listing.num_train).any() and (labels >= listing.num_train).any():
        return "in a training and a test class"
    return "in two classes"
