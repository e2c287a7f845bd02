"""CUB-200-2011: 200 bird species, the first 100 for training (Wah et al., 2011)."""

from pathlib import Path

from dmlkit.datasets.readers.listing import (
    About,
    Listing,
    class_number,
    find_root,
    make_listing,
    read_pairs,
)

ABOUT = About(
    title="Caltech-UCSD Birds-200-2011 (Wah, Branson, Welinder, Perona and Belongie, 2011)",
    published={"all": (11788, 200), "train": (5864, 100), "test": (5924, 100)},
    folders=("CUB_200_2011",),
    needed=("image_class_labels.txt",),
    where="https://data.caltech.edu/records/65de6-vp158 (CUB_200_2011.tgz, 1.1 GB)",
    unpack="tar xzf CUB_200_2011.tgz, which makes the folder CUB_200_2011",
    terms="photographs from the web; non-commercial research and education",
    archives=(("CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"),),
)


def list_images(root: Path) -> Listing:
    """List ``CUB_200_2011``: ``images.txt``, ``image_class_labels.txt`` and ``images/``.

    Classes 1-100 train and 101-200 test. The split of images within classes that comes with the
    data (``train_test_split.txt``) is for another task and not used.
    """
    return list_caltech("cub200_2011", ABOUT, root, last_train=100)


def list_caltech(name: str, about: About, root: Path, last_train: int | None = None) -> Listing:
    """List a data set in this layout, which NABirds shares.

    Args:
        name: what the data set is called here.
        about: what is published about it.
        root: folder that holds it.
        last_train: number of the last training class; by default the first half of them trains.
    """
    root = find_root(name, about, root)
    labels, numbers = root / "image_class_labels.txt", root / "classes.txt"
    paths, classes = read_pairs(root / "images.txt"), read_pairs(labels)
    if paths.keys() != classes.keys():
        raise ValueError(
            f"images.txt and image_class_labels.txt in {root} name different images "
            f"({len(paths):,} and {len(classes):,}); unpack the data set again"
        )
    names = {class_number(n, numbers): text for n, text in read_pairs(numbers).items()}
    files = [f"images/{path}" for path in paths.values()]
    ids = [class_number(classes[i], labels) for i in paths]
    num_train = len(set(ids)) // 2 if last_train is None else sum(i <= last_train for i in set(ids))
    return make_listing(root, files, ids, num_train, names)
