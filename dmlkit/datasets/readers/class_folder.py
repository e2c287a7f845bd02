"""Any images in one folder per class: the reader's own data."""

from pathlib import Path

from dmlkit.datasets.readers.listing import About, Listing, make_listing

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
ABOUT = About(
    title="your own images, one folder per class",
    published={},
    folders=(),
    needed=(),
    where="DATA_DIR",
    unpack="<DATA_DIR>/<class name>/<image>.jpg, two images or more in each folder",
    terms="yours",
)


def list_images(root: Path) -> Listing:
    """List ``root/<class name>/<image>``: the first half of the folders, sorted, trains."""
    return list_class_folder(root)


def list_class_folder(root: Path, folder: str = ".") -> Listing:
    """List ``root/folder/<class name>/<image>``: the first half of the folders, sorted, trains.

    Args:
        root: folder of the data set.
        folder: what holds the class folders, from ``root``.

    Raises:
        FileNotFoundError: there is no such folder, or no class folder in it.
        ValueError: a class has fewer than two images.
    """
    parent = root / folder
    if not parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {parent}; set DATA_DIR to the folder that holds the images"
        )
    folders = sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise FileNotFoundError(
            f"{parent} holds no class folders; expected {parent.name}/<class name>/<image>.jpg"
        )
    files, classes = [], []
    for class_folder in folders:
        # macOS archives leave "._name.jpg" files that only look like images.
        found = sorted(
            p.relative_to(root).as_posix()
            for p in class_folder.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        if len(found) < 2:
            raise ValueError(
                f"class folder {class_folder} holds {len(found)} image(s) of the kinds "
                f"{' '.join(sorted(SUFFIXES))}, and a class needs at least 2 for a query to have "
                "something to find; add images or remove the folder"
            )
        files += found
        classes += [class_folder.name] * len(found)
    return make_listing(root, files, classes, len(folders) // 2, {})
