"""Cars-196: 196 car models, the first 98 for training (Krause et al., 2013), in three layouts."""

import csv
import io
import re
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from dmlkit.datasets.readers.listing import About, Listing, find_root, make_listing, read_lines

ABOUT = About(
    title="Cars-196, also called Stanford Cars (Krause, Stark, Deng and Fei-Fei, 2013)",
    published={"all": (16185, 196), "train": (8054, 98), "test": (8131, 98)},
    folders=("stanford_cars", "cars196", "Cars196", "CARS196"),
    needed=("cars_annos.mat", "devkit/cars_train_annos.mat", "anno_train.csv"),
    where="the original host is gone; https://github.com/pytorch/vision/issues/7545 lists copies "
    "(images: Kaggle jessicali9530/stanford-cars-dataset; devkit and labelled test annotations in "
    "the thread), or Kaggle jutrera/stanford-car-dataset-by-classes-folder",
    unpack="any of: car_ims/ with cars_annos.mat; cars_train/, cars_test/, devkit/ with "
    "cars_test_annos_withlabels.mat; car_data/ with anno_train.csv, anno_test.csv, names.csv",
    terms="photographs from the web; research only",
    archives=(
        ("car_ims.tgz", "d5c8f0aa497503f355e17dc7886c3f14"),
        ("cars_annos.mat", "b407c6086d669747186bd1d764ff9dbc"),
    ),
)


def list_images(root: Path) -> Listing:
    """List the original, torchvision's or Kaggle's layout.

    All three split the images of every class in two for another task. Here those parts are united
    before classes 1-98 train and 99-196 test; forgetting that halves the data.
    """
    root = find_root("cars196", ABOUT, root)
    if (root / "cars_annos.mat").exists():
        files, classes, names = _original(root)
    elif (root / "devkit").exists():
        files, classes, names = _torchvision(root)
    else:
        files, classes, names = _kaggle(root)
    num_train = sum(number <= 98 for number in set(classes))
    return make_listing(root, files, classes, num_train, dict(enumerate(names, start=1)))


def _original(root: Path) -> tuple[list[str], list[int], list[str]]:
    """Read ``cars_annos.mat``, whose paths begin with ``car_ims/``."""
    files, classes, names = _read(
        root / "cars_annos.mat", "relative_im_path", "class", "class_names"
    )
    return files, classes, names


def _torchvision(root: Path) -> tuple[list[str], list[int], list[str]]:
    """Read the devkit. Its own test annotations have no classes; a second file has them."""
    files, classes = [], []
    annotations = {
        "cars_train": root / "devkit" / "cars_train_annos.mat",
        "cars_test": root / "cars_test_annos_withlabels.mat",
    }
    for folder, path in annotations.items():
        names, numbers = _read(path, "fname", "class")
        files += [f"{folder}/{name}" for name in names]
        classes += numbers
    (names,) = _read(root / "devkit" / "cars_meta.mat", "class_names")
    return files, classes, names


def _kaggle(root: Path) -> tuple[list[str], list[int], list[str]]:
    """Read the lists of ``car_data/[car_data/]{train,test}/<class name>/<file>``."""
    names = [next(csv.reader(io.StringIO(line))) for line in read_lines(root / "names.csv")]
    names = [",".join(name) for name in names]
    nested = "car_data/car_data"  # as the archive unpacks; some move the inner folder up
    images = nested if (root / nested).is_dir() else "car_data"
    files, classes = [], []
    for part in ("train", "test"):
        for row in csv.reader(read_lines(root / f"anno_{part}.csv")):
            # By length first: Python refuses to read numbers of thousands of digits.
            if not re.fullmatch(r"\d{1,18}", row[-1]) or not 1 <= int(row[-1]) <= len(names):
                raise ValueError(
                    f"anno_{part}.csv in {root} has the class {row[-1][:40]!r}, but names.csv has "
                    f"{len(names)} names; download both again"
                )
            classes.append(int(row[-1]))
            # A folder's name cannot hold the slash of "Ram C/V Cargo Van Minivan 2012".
            folder = names[classes[-1] - 1].replace("/", "-")
            files.append(f"{images}/{part}/{folder}/{row[0]}")
    return files, classes, names


def _read(path: Path, *columns: str) -> list[list]:
    """Return columns of the annotations in a .mat file; ``class_names`` are beside them.

    Those called ``class`` are numbers, all others text.
    """
    try:
        with path.open("rb") as file:
            content = loadmat(file, squeeze_me=True)
        tables = [content if c == "class_names" else content["annotations"] for c in columns]
        found = {c: np.atleast_1d(t[c]).tolist() for c, t in zip(columns, tables, strict=True)}
        for column, values in found.items():
            if column == "class":
                found[column] = [int(number) for number in values]
            elif not all(isinstance(value, str) for value in values):
                raise TypeError(f"{column} holds other things than text")
        return list(found.values())
    except FileNotFoundError:
        hint = (
            "; its classes are not in devkit/cars_test_annos.mat"
            if "withlabels" in path.name
            else ""
        )
        raise FileNotFoundError(
            f"{path} is missing{hint}; run `dmlkit data cars196` to see where to get it"
        ) from None
    except Exception as error:  # scipy lets all kinds through when a file is broken
        raise ValueError(f"{path} cannot be read ({error}); download it again") from error
