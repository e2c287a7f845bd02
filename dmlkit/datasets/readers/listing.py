"""What the files of a data set say before any image is decoded, and the guard of its protocol.

Every real data set has a module beside this one with ``ABOUT`` and ``list_images(root)``. What all
of them need is here: finding the folder, the list itself, its check against the published counts.
"""

import json
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

# A folder with this file holds random images in the layout of a data set, made by the tests. Its
# counts replace the published ones, and everything measured on it is marked as not run.
GENERATED = "generated_tree.json"


@dataclass(frozen=True)
class About:
    """What is published about a data set, and what a reader needs to get it.

    Args:
        title: name, authors and year.
        published: images and classes of each part; parts are ``all``, ``train``, ``test``, and
            ``query`` and ``gallery`` of the test classes.
        folders: names of the folder that its archives unpack to.
        needed: files or folders of which one shows that a folder holds the data set.
        where: where to get it.
        unpack: what to do with the archives.
        terms: terms of use, as far as known.
        archives: file name and MD5 of the archives, where published.
        is_certain: whether the counts are those of a published protocol, and not only reported.
    """

    title: str
    published: dict[str, tuple[int, int]]
    folders: tuple[str, ...]
    needed: tuple[str, ...]
    where: str
    unpack: str
    terms: str
    archives: tuple[tuple[str, str], ...] = ()
    is_certain: bool = True


@dataclass(frozen=True)
class Listing:
    """The labelled images of a data set, classes in official order, training classes first.

    Args:
        root: folder that the file names are relative to.
        files: N file names with forward slashes; inside a zip archive ``archive.zip/member``.
        labels: (N,) int64, class of each image, from 0.
        class_names: name of each class.
        num_train: number of training classes of the published split.
        is_gallery: (N,) bool, which images of the test classes are searched rather than searched
            with; None where each test image queries all the others.
        groups: (C,) int64, which classes a random split keeps together; None: each by itself.
        is_generated: whether the folder is a generated tree.
    """

    root: Path
    files: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    num_train: int
    is_gallery: np.ndarray | None = None
    groups: np.ndarray | None = None
    is_generated: bool = False

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return the numbers of images and classes of each part."""
        is_train = self.labels < self.num_train
        parts = {"all": np.ones_like(is_train), "train": is_train, "test": ~is_train}
        if self.is_gallery is not None:
            parts["query"] = ~is_train & ~self.is_gallery
            parts["gallery"] = ~is_train & self.is_gallery
        return {
            name: (int(part.sum()), len(np.unique(self.labels[part])))
            for name, part in parts.items()
        }

    def limited(self, max_classes: int, max_images_per_class: int) -> "Listing":
        """Return the first classes, half of them for testing, and the first images of each.

        Args:
            max_classes: how many classes to keep; 0 keeps all.
            max_images_per_class: how many images of each to keep; 0 keeps all. Queries and gallery
                images of a class count apart, so that neither is left without the other.
        """
        if max_classes and max_classes < 4:
            raise ValueError(
                f"MAX_CLASSES={max_classes} leaves fewer than two classes for training or for "
                "testing; use 4 or more, or 0 for all"
            )
        half = max_classes // 2 if max_classes else len(self.class_names)
        classes = np.arange(len(self.class_names))
        rank = np.where(classes < self.num_train, classes, classes - self.num_train)
        listing = self.keep_classes(np.flatnonzero(rank < half))
        if not max_images_per_class:
            return listing
        roles = 0 if listing.is_gallery is None else listing.is_gallery
        rank = _rank_within(2 * listing.labels + roles)
        return listing._keep_rows(np.flatnonzero(rank < max_images_per_class))

    def keep_classes(self, classes: np.ndarray) -> "Listing":
        """Return the images of ``classes`` (C',), ascending, numbered anew from 0."""
        rows = np.flatnonzero(np.isin(self.labels, classes))
        kept = self._keep_rows(rows)
        return replace(
            kept,
            labels=np.searchsorted(classes, kept.labels),
            class_names=tuple(self.class_names[c] for c in classes),
            num_train=int((classes < self.num_train).sum()),
            groups=None if self.groups is None else self.groups[classes],
        )

    def _keep_rows(self, rows: np.ndarray) -> "Listing":
        return replace(
            self,
            files=[self.files[row] for row in rows],
            labels=self.labels[rows],
            is_gallery=None if self.is_gallery is None else self.is_gallery[rows],
        )


def make_listing(
    root: Path, files: list[str], classes: list, num_train: int, names: dict, **more
) -> Listing:
    """Return a Listing from the class id of each file, ids in ascending order.

    Args:
        root: folder that ``files`` are relative to.
        files: the file names.
        classes: class id of each file, of any type that sorts.
        num_train: number of training classes.
        names: name of each class id; an id that is missing here is its own name.
        more: further fields of ``Listing``.
    """
    if len(set(files)) < len(files):
        repeated, _ = Counter(files).most_common(1)[0]
        raise ValueError(
            f"the lists in {root} name {repeated} more than once; an image has one class and one "
            "part, so remove its other lines"
        )
    ids = sorted(set(classes))
    label_of = {i: label for label, i in enumerate(ids)}
    labels = np.array([label_of[i] for i in classes], dtype=np.int64)
    class_names = tuple(str(names.get(i, i)) for i in ids)
    generated = (root / GENERATED).exists()
    return Listing(root, files, labels, class_names, num_train, is_generated=generated, **more)


def find_root(name: str, about: About, root: Path) -> Path:
    """Return the folder of the data set called ``name``: ``root``, or one of its names below it.

    Raises:
        FileNotFoundError: there is none, with where to get the data.
    """
    candidates = [root, *(root / folder for folder in (name, *about.folders))]
    candidates += [root / name / folder for folder in about.folders]
    for folder in candidates:
        if any((folder / file).exists() for file in about.needed):
            return folder
    if not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; set DATA_DIR to the folder that holds {name}, or run "
            f"`dmlkit data {name}` to see where to get it"
        )
    if any((root.parent / file).exists() for file in about.needed):
        raise FileNotFoundError(
            f"{root} is a part of {name}, which {root.parent} holds; set DATA_DIR to that folder"
        )
    raise FileNotFoundError(
        f"{root} does not hold {name}: there is no {' or '.join(about.needed)} in it or in its "
        f"folder {' or '.join(dict.fromkeys((name, *about.folders)))}; run `dmlkit data {name}` to "
        "see where to get it and how to unpack it"
    )


def check_counts(name: str, about: About, listing: Listing) -> None:
    """See that a listing has the published numbers of images and classes.

    Where the numbers are only reported, in a pool that no protocol fixes, a difference is printed.

    Raises:
        ValueError: it does not, with what was expected and found.
    """
    counts = listing.counts()
    for part, published in expected_counts(about, listing.root).items():
        if counts[part] == published:
            continue
        if not (about.is_certain or listing.is_generated):
            print(f"{name} lists {say_counts(counts[part])}; reported are {say_counts(published)}")
        else:
            raise ValueError(
                f"{name} in {listing.root} lists {say_counts(counts[part])} ({part}), but the "
                f"published protocol has {say_counts(published)}; download and unpack it again, or "
                "read your own selection with DATASET=list_files or class_folder"
            )


def expected_counts(about: About, root: Path) -> dict[str, tuple[int, int]]:
    """Return the counts that the folder should have: the published ones, or its generator's."""
    if (root / GENERATED).exists():
        generated = json.loads((root / GENERATED).read_text())
        return {part: tuple(counts) for part, counts in generated.items()}
    return about.published


def say_counts(counts: tuple[int, int]) -> str:
    """Return counts as text."""
    return f"{counts[0]:,} images of {counts[1]:,} classes"


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, names in any encoding kept as they are.

    Raises:
        FileNotFoundError: the file is missing, as after a partial unpacking.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing; unpack the data set again") from None
    return [line.strip() for line in text.split("\n") if line.strip()]


def read_pairs(path: Path) -> dict[str, str]:
    """Return the first word of each line of ``path``, and the rest of the line."""
    pairs = (line.split(maxsplit=1) for line in read_lines(path))
    try:
        return {key: value for key, value in pairs}
    except ValueError:
        raise ValueError(
            f"{path} has a line that is not an id followed by a value; unpack the data set again"
        ) from None


def class_number(text: str, path: Path) -> int:
    """Return the number of a class that ``path`` gives as ``text``.

    Raises:
        ValueError: it is no number, or one of more than 18 digits.
    """
    if not re.fullmatch(r"\d{1,18}", text):
        raise ValueError(
            f"{path} has {text[:40]!r} in place of the number of a class; unpack the data set again"
        )
    return int(text)


def open_archive(path: Path) -> zipfile.ZipFile:
    """Return an open zip archive.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no zip archive, or a damaged one.
    """
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile lets all kinds through when an archive is broken
        raise ValueError(f"{path} cannot be read ({error}); download it again") from error


def filter_sizes(listing: Listing, num_classes: int, num_images: int) -> Listing:
    """Return the classes whose sizes lie between the bounds that come nearest to the totals."""
    sizes = np.bincount(listing.labels)
    low, high = nearest_filter(sizes, num_classes, num_images)
    return listing.keep_classes(np.flatnonzero((sizes >= low) & (sizes <= high)))


def nearest_filter(sizes: np.ndarray, num_classes: int, num_images: int) -> tuple[int, int]:
    """Return the smallest and largest class size whose classes come nearest to given totals.

    SLADE used parts of CompCars and Fashion200k whose selection is not published, only the totals.
    Keeping the classes of middling size is our guess; nearest means the least sum of the relative
    differences of both totals.

    Args:
        sizes: (C,) images of each class.
        num_classes: number of classes wanted.
        num_images: number of images wanted.
    """
    values, count = np.unique(sizes, return_counts=True)
    classes = np.concatenate([[0], count.cumsum()])
    images = np.concatenate([[0], (count * values).cumsum()])
    first, end = np.triu_indices(len(values) + 1, k=1)  # keeps values[first:end]
    difference = abs(classes[end] - classes[first] - num_classes) / num_classes
    difference += abs(images[end] - images[first] - num_images) / num_images
    best = difference.argmin()
    return int(values[first[best]]), int(values[end[best] - 1])


def _rank_within(keys: np.ndarray) -> np.ndarray:
    """Return (N,) the position of each item among those with its key."""
    order = keys.argsort(kind="stable")
    sorted_keys = keys[order]
    starts = np.searchsorted(sorted_keys, sorted_keys)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(keys)) - starts
    return rank
