"""Data sets of random images in the official layouts, for tests and for dry runs of the book.

Written from published descriptions and independently of the readers, which are tested against it.
Every picture shows its class as a colour (``class_shown``), so a tree carries its own answers. By
hand: ``python -m tests.official_trees cars196 data --layout kaggle``.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

from dmlkit.datasets.readers.listing import GENERATED

# Images and classes of each part. Those of Fashion200k are not known exactly: no full tree of it.
OFFICIAL = {
    "cub200_2011": {"train": (5864, 100), "test": (5924, 100)},
    "cars196": {"train": (8054, 98), "test": (8131, 98)},
    "stanford_online_products": {"train": (59551, 11318), "test": (60502, 11316)},
    "in_shop": {"train": (25882, 3997), "query": (14218, 3985), "gallery": (12612, 3985)},
    "cub200_2010": {"train": (2990, 100), "test": (3043, 100)},
    "omniglot": {"train": (19280, 964), "test": (13180, 659)},
    "nabirds": {"all": (48562, 555)},
    "compcars": {"all": (136726, 1716)},
    "fashion200k": {"all": None},
}
LAYOUTS = {
    "cars196": ("original", "torchvision", "kaggle"),
    "in_shop": ("Eval", "beside"),
    "omniglot": ("zips", "folders", "torchvision"),
    "compcars": ("data/image", "image"),
}
FOLDERS = {  # that the archives unpack to; elsewhere called like the data set
    "cub200_2011": "CUB_200_2011",
    "stanford_online_products": "Stanford_Online_Products",
    "compcars": "CompCars",
    "cars196/torchvision": "stanford_cars",
    "omniglot/torchvision": "omniglot-py",
}
NUM_COLOURS, NUM_VARIANTS = 216, 8  # pictures differ up to these; later ones are hard links
CARS = {i: f"Make Model {i} Sedan 2012" for i in range(1, 197)}
CARS[174] = "Ram C/V Cargo Van Minivan 2012"
SUPER_CLASSES = "bicycle cabinet chair coffee_maker fan kettle lamp mug sofa stapler table toaster"
CLOTHES = {"dresses": "dress", "jackets": "jacket", "pants": "pants", "skirts": "skirt"}


def make_tree(
    name: str,
    root: Path,
    *,
    num_classes: int = 8,
    images_per_class: int = 4,
    layout: str = "",
    full: bool = False,
    pictures: bool = True,
) -> Path:
    """Make the data set called ``name`` below ``root``, which is DATA_DIR; return its own folder.

    Args:
        name: a key of ``OFFICIAL``.
        root: the folder to make it in.
        num_classes: half of them train. The first item of In-Shop has one image, as some do.
        images_per_class: on average; half of those of In-Shop's test items are queries.
        layout: one of ``LAYOUTS``, by default the first.
        full: the official numbers of images and classes, and no mark that the tree is generated.
        pictures: write them, and not the lists alone.
    """
    layout = layout or LAYOUTS.get(name, ("",))[0]
    folder = Path(root) / FOLDERS.get(f"{name}/{layout}", FOLDERS.get(name, name))
    folder.mkdir(parents=True)  # never over real data
    counts = OFFICIAL[name]
    if not full:
        half, queries = num_classes // 2, (images_per_class + 1) // 2
        classes = {"all": num_classes, "train": half}
        images = {"query": queries, "gallery": images_per_class - queries}
        for part in counts:
            number = classes.get(part, num_classes - half)
            counts = counts | {part: (number * images.get(part, images_per_class), number)}
    sizes = {part: spread(*count) for part, count in counts.items()}
    tree = Tree(folder, layout, sizes, pictures)
    MAKERS[name](tree)
    if not full:
        everything = {"all": (len(tree.images), len(tree.classes))}
        tree.lines(GENERATED, [json.dumps(everything | counts)])
    return folder


def spread(total: int, parts: int) -> list[int]:
    """Return ``parts`` numbers that add up to ``total``, as equal as they can be."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def class_shown(picture: Path) -> int:
    """Return the class of a picture, modulo ``NUM_COLOURS``: the colour of its left side."""
    with Image.open(picture) as image:
        left = np.asarray(image.convert("RGB"))[:, :10].mean((0, 1))
    return int((left / 51).round() @ [36, 6, 1])


@cache
def jpeg(label: int, variant: int) -> bytes:
    """Return a picture, wide or high, with the colour of its class on the left."""
    random = np.random.RandomState(NUM_VARIANTS * label + variant)
    pixels = random.randint(256, size=(40, 30, 3) if variant % 2 else (30, 40, 3), dtype=np.uint8)
    pixels[:, :16] = 51 * np.array([label // 36, label // 6 % 6, label % 6])
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG")
    return buffer.getvalue()


@cache
def drawing(label: int, variant: int) -> bytes:
    """Return one hand's version of a character, 105 pixels wide and one bit deep."""
    image = Image.new("1", (105, 105), 1)
    stroke = np.random.RandomState(label).randint(10, 95, size=(5, 2))
    stroke += np.random.RandomState(variant).randint(-4, 5, size=(5, 2))
    ImageDraw.Draw(image).line([tuple(point) for point in stroke.tolist()], fill=0, width=2)
    image.save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


class Tree:
    """Writes below a folder; the same picture for the second time is a hard link.

    Args:
        folder: of the data set.
        layout: one of ``LAYOUTS``.
        sizes: images of each class, of each part. Labels count the training classes first.
        pictures: whether to write them.
    """

    def __init__(
        self, folder: Path, layout: str, sizes: dict[str, list[int]], pictures: bool
    ) -> None:
        self.folder, self.layout, self.sizes, self.pictures = folder, layout, sizes, pictures
        self.train = sizes.get("train", [])
        self.test = sizes.get("test", [])
        if "query" in sizes:
            self.train[-1] += self.train[0] - 1
            self.train[0] = 1
            self.test = np.add(sizes["query"], sizes["gallery"]).tolist()
        self.classes = sizes.get("all") or self.train + self.test
        # Label, and running number within its class, of each image.
        self.images = [(c, n) for c, size in enumerate(self.classes) for n in range(size)]
        self.written, self.folders = {}, set()

    def numbers(self, first_test: int) -> list[int]:
        """Return official class numbers: 1, 2, ... for training and others on for testing."""
        return [*range(1, 1 + len(self.train)), *range(first_test, first_test + len(self.test))]

    def picture(self, file: str, label: int, number: int, content: Callable = jpeg) -> str:
        """Write one picture and return its name."""
        path, key = f"{self.folder}/{file}", (label % NUM_COLOURS, number % NUM_VARIANTS)
        if not self.pictures:
            return file
        if (parent := os.path.dirname(path)) not in self.folders:
            os.makedirs(parent, exist_ok=True)
            self.folders.add(parent)
        if first := self.written.get(key):
            try:
                os.link(first, path)
            except OSError:  # a file system without hard links
                shutil.copyfile(first, path)
        else:
            Path(path).write_bytes(content(*key))
            self.written[key] = path
        return file

    def lines(self, file: str, lines: list[str]) -> None:
        """Write a text file."""
        (self.folder / file).parent.mkdir(exist_ok=True)
        (self.folder / file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def mat(self, file: str, rows: list[dict] | None = None, names: bool = False) -> None:
        """Write a MATLAB file with a struct array of annotations, a cell array of names or both."""
        content = {"class_names": np.array([[*CARS.values()]], dtype=object)} if names else {}
        if rows:
            annotations = np.empty((1, len(rows)), [(field, object) for field in rows[0]])
            annotations[0] = [tuple(row.values()) for row in rows]
            content["annotations"] = annotations
        (self.folder / file).parent.mkdir(exist_ok=True)
        savemat(self.folder / file, content)


def _caltech(tree: Tree, rows: list[tuple[str, int, str]], names: dict[int, str]) -> None:
    """Write the lists of image ids, classes and paths that CUB-200-2011 and NABirds share."""
    tree.lines("images.txt", [f"{image} {path}" for image, _, path in rows])
    tree.lines("image_class_labels.txt", [f"{image} {number}" for image, number, _ in rows])
    tree.lines("train_test_split.txt", [f"{row[0]} {n % 2}" for n, row in enumerate(rows)])
    tree.lines("classes.txt", [f"{number} {name}" for number, name in names.items()])


def _cub200_2011(tree: Tree) -> None:
    """Classes 1, 2, ... train and 101, 102, ... test. Image ids run on from 1."""
    names = {i: f"{i:03d}.Bird_{i}" for i in range(1, 201)}
    ids = tree.numbers(101)
    rows = []
    for image, (label, number) in enumerate(tree.images, start=1):
        path = f"{names[ids[label]]}/Bird_{ids[label]}_{number + 1:04d}_{796096 + image}.jpg"
        tree.picture(f"images/{path}", label, number)
        rows.append((str(image), ids[label], path))
    _caltech(tree, rows, names)


def _nabirds(tree: Tree) -> None:
    """Class numbers up to 1010 with gaps; images in the order of their random ids."""
    ids = np.linspace(0, 1010, len(tree.classes)).astype(int).tolist()
    rows = []
    for label, number in tree.images:
        image = uuid.UUID(hashlib.md5(f"{label} {number}".encode()).hexdigest())
        path = f"{ids[label]:04d}/{image.hex}.jpg"
        tree.picture(f"images/{path}", label, number)
        rows.append((str(image), ids[label], path))
    _caltech(tree, sorted(rows), {i: f"Bird {i} (Adult, male)" for i in range(1011)})
    tree.lines("hierarchy.txt", [f"{child} 0" for child in range(1, 1011)])


def _cars196(tree: Tree) -> None:
    """Classes 1, 2, ... train; 174, which has a slash, and 99, 100, ... test."""
    test = [174, *(i for i in range(99, 197) if i != 174)][: len(tree.test)]
    ids = [*range(1, 1 + len(tree.train)), *sorted(test)]
    box = {"bbox_x1": 2, "bbox_y1": 3, "bbox_x2": 30, "bbox_y2": 20}
    # The lists of another task, 8,144 and 8,041 images long, have every class, in no order.
    mixed = sorted(tree.images, key=lambda image: image[1])
    middle = len(mixed) * 8144 // 16185
    if tree.layout == "original":
        rows, in_test = [], set(mixed[middle:])
        for n, image in enumerate(tree.images, start=1):
            row = {"relative_im_path": tree.picture(f"car_ims/{n:06d}.jpg", *image), **box}
            rows.append(row | {"class": ids[image[0]], "test": int(image in in_test)})
        tree.mat("cars_annos.mat", rows, names=True)
        return
    for part, images in {"train": mixed[:middle], "test": mixed[middle:]}.items():
        rows, folder = [], f"cars_{part}"
        for n, (label, number) in enumerate(images, start=1):
            if tree.layout == "kaggle":
                folder = f"car_data/car_data/{part}/{CARS[ids[label]].replace('/', '-')}"
            tree.picture(f"{folder}/{n:05d}.jpg", label, number)
            rows.append({**box, "class": ids[label], "fname": f"{n:05d}.jpg"})
        if tree.layout == "kaggle":
            tree.lines(f"anno_{part}.csv", [f"{r['fname']},2,3,30,20,{r['class']}" for r in rows])
        else:
            labelled = "cars_test_annos_withlabels" if part == "test" else "devkit/cars_train_annos"
            tree.mat(f"{labelled}.mat", rows)
    if tree.layout == "kaggle":
        tree.lines("names.csv", list(CARS.values()))
    else:
        tree.mat("devkit/cars_meta.mat", names=True)
        unlabelled = [{**box, "fname": row["fname"]} for row in rows]
        tree.mat("devkit/cars_test_annos.mat", unlabelled)


def _stanford_online_products(tree: Tree) -> None:
    """Classes 1, 2, ... train and 11319, 11320, ... test, each of one of twelve kinds."""
    ids, header = tree.numbers(11319), "image_id class_id super_class_id path"
    lists = {"train": [header], "test": [header]}
    for image, (label, number) in enumerate(tree.images, start=1):
        kind = label * 12 // len(tree.classes)
        path = f"{SUPER_CLASSES.split()[kind]}_final/{111085122871 + label}_{number}.JPG"
        tree.picture(path, label, number)
        part = "train" if label < len(tree.train) else "test"
        lists[part].append(f"{image} {ids[label]} {kind + 1} {path}")
    for part, lines in lists.items():
        tree.lines(f"Ebay_{part}.txt", lines)


def _in_shop(tree: Tree) -> None:
    """Items with odd numbers train and even ones test, so that rows of both are mixed."""
    rows = []
    for label, number in tree.images:
        of_test = label - len(tree.train)
        item = f"id_{2 * of_test + 2 if of_test >= 0 else 2 * label + 1:08d}"
        kind = ("MEN/Denim", "MEN/Jackets_Vests", "WOMEN/Dresses", "WOMEN/Tees_Tanks")[label % 4]
        path = f"img/{kind}/{item}/{number // 7 + 1:02d}_{number % 7 + 1}_front.jpg"
        tree.picture(path, label, number)
        status = "train"
        if of_test >= 0:
            status = "query" if number < tree.sizes["query"][of_test] else "gallery"
        rows.append(f"{path:<70} {item} {status:<10}")
    folder = "Eval/" if tree.layout == "Eval" else ""
    head = [str(len(rows)), "image_name item_id evaluation_status"]
    tree.lines(f"{folder}list_eval_partition.txt", [*head, *sorted(rows)])


def _cub200_2010(tree: Tree) -> None:
    """Folders alone say the class: 001, 002, ... train and 101, 102, ... test."""
    ids = tree.numbers(101)
    for n, (label, number) in enumerate(tree.images):
        name = f"Bird_{ids[label]}_{number + 1:04d}_{2950163169 + n}.jpg"
        tree.picture(f"images/{ids[label]:03d}.Bird_{ids[label]}/{name}", label, number)


def _omniglot(tree: Tree) -> None:
    """Up to 30 alphabets train and 20 others test, as archives or folders of characters."""
    names = []
    for part, classes, most, first in (
        ("background", tree.train, 30, 0),
        ("evaluation", tree.test, 20, 30),
    ):
        sizes = spread(len(classes), min(most, max(1, len(classes) // 2)))
        for alphabet, size in enumerate(sizes, start=first):
            folder = f"images_{part}/Alphabet_{alphabet:02d}"
            names += [f"{folder}/character{i + 1:02d}" for i in range(size)]
    files = {
        f"{names[label]}/{label + 1:04d}_{number + 1:02d}.png": (label, number)
        for label, number in tree.images
    }
    if tree.layout != "zips":
        for file, image in files.items():
            tree.picture(file, *image, drawing)
        return
    for part in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tree.folder / f"{part}.zip", "w") as archive:
            archive.writestr(f"{part}/", b"")
            for file, (label, number) in files.items():
                if file.startswith(part):
                    archive.writestr(file, drawing(label % NUM_COLOURS, number % NUM_VARIANTS))


def _compcars(tree: Tree) -> None:
    """Makes from 9 on, models from 9 on, and two years of each model."""
    num_makes = max(2, len(tree.classes) * 163 // 1716)
    for label, number in tree.images:
        make, model = 9 + label * num_makes // len(tree.classes), 9 + label
        name = hashlib.md5(f"{label} {number}".encode()).hexdigest()[:14]
        tree.picture(f"{tree.layout}/{make}/{model}/{2013 + number % 2}/{name}.jpg", label, number)


def _fashion200k(tree: Tree) -> None:
    """An item is a description in a category; several products have it, of both lists."""
    kinds = CLOTHES | {"tops": "top"}
    lists = {f"{kind}_{part}": [] for kind in kinds.values() for part in ("train", "test")}
    for label, number in tree.images:
        category, product = [*kinds][label * 5 // len(tree.classes)], 51727804 + 10 * label + number
        file = f"women/{category}/casual_{category}/{product}/{product}_{number}.jpeg"
        tree.picture(file, label, number)
        row = f"{file}\t-1.{number}78\tmulticolor cotton a-line {label:04d}"
        lists[f"{kinds[category]}_{('train', 'test')[number % 2]}"].append(row)
    for name, lines in lists.items():
        tree.lines(f"labels/{name}_detect_all.txt", lines)


MAKERS = {name: globals()[f"_{name}"] for name in OFFICIAL}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a data set of random images.")
    parser.add_argument("name", choices=OFFICIAL)
    parser.add_argument("folder", type=Path, help="DATA_DIR, in which its folder is made")
    parser.add_argument("--layout", default="", help=str(LAYOUTS))
    parser.add_argument("--full", action="store_true", help="the official numbers of images")
    arguments = parser.parse_args()
    print(make_tree(arguments.name, arguments.folder, layout=arguments.layout, full=arguments.full))
