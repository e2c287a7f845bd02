"""Lists of images: their forms, and what is refused."""

import pytest
from PIL import Image

from dmlkit.datasets import list_images
from dmlkit.datasets.decoding import fingerprint

LISTS = {
    "train": [("images/owl/1.jpg", 3), ("images/owl/2.jpg", 3), ("images/wren/1.jpg", 10)],
    "test": [("images/kite/1.jpg", 9), ("images/kite/2.jpg", 9), ("images/tern/1.jpg", 100)],
}
RETRIEVAL = {
    "train": LISTS["train"],
    "query": [("images/kite/1.jpg", 9), ("images/tern/1.jpg", 100)],
    "gallery": [("images/kite/2.jpg", 9), ("images/tern/2.jpg", 100), ("images/tern/3.jpg", 100)],
}


def write(folder, lists, separator=" ", end="\n"):
    """Write lists of paths and labels, and the images that they name."""
    for part, rows in lists.items():
        lines = [f"{file}{separator}{label}{end}" for file, label in rows]
        (folder / f"{part}.txt").write_text("".join(lines), encoding="utf-8")
        for file, label in rows:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (label, 0, 0)).save(folder / file)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", "  ", " \t "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "  \n", "\n\n"], ids=["unix", "dos", "blank", "gap"])
def test_a_line_is_a_path_a_separator_and_a_label(separator, end, tmp_path):
    write(tmp_path, LISTS, separator, end)
    listing = list_images("list_files", tmp_path)
    assert listing.files == [file for rows in LISTS.values() for file, _ in rows]
    assert listing.class_names == ("3", "10", "9", "100")  # by number, training classes first
    assert listing.labels.tolist() == [0, 0, 1, 2, 2, 3]
    assert listing.num_train == 2
    assert listing.is_gallery is None and listing.groups is None


def test_queries_are_searched_for_in_the_gallery(tmp_path):
    write(tmp_path, RETRIEVAL)
    listing = list_images("list_files", tmp_path)
    assert listing.is_gallery.tolist() == [False] * 5 + [True] * 3
    assert listing.class_names == ("3", "10", "9", "100") and listing.num_train == 2
    assert listing.labels.tolist() == [0, 0, 1, 2, 3, 2, 3, 3]
    assert listing.counts()["query"] == (2, 2) and listing.counts()["gallery"] == (3, 2)


@pytest.mark.parametrize(("part", "other"), [("query", "gallery"), ("train", "query")])
def test_an_image_in_two_lists_is_refused_by_name(part, other, tmp_path):
    # A query that lies in the gallery would find itself.
    file = RETRIEVAL[part][0][0]
    label = RETRIEVAL[other][0][1]
    write(tmp_path, RETRIEVAL | {other: [*RETRIEVAL[other], (file, label)]})
    with pytest.raises(ValueError, match=f"name {file} more than once; .* remove its other lines"):
        list_images("list_files", tmp_path)


def test_labels_may_begin_at_nought(tmp_path):
    write(tmp_path, {"train": [("a.jpg", 0)], "test": [("b.jpg", 1)]}, ",")
    assert list_images("list_files", tmp_path).class_names == ("0", "1")


@pytest.mark.parametrize("separator", [" ", "\t", ","])
@pytest.mark.parametrize(
    "file",
    [
        "great tit/photo 1.jpg",
        "Vögel/Zaunkönig 鳥.JPG",
        "a, b/c,1.jpeg",
        "v1.2 (copy)/1 2.jpg",
        "12/34.png",
        "it's 100%.jpg 7/x.webp",
    ],
)
def test_paths_may_hold_spaces_commas_digits_and_any_letters(file, separator, tmp_path):
    write(tmp_path, {"train": [(file, 17)], "test": [("b.jpg", 18)]}, separator)
    listing = list_images("list_files", tmp_path)
    assert listing.files == [file, "b.jpg"]
    assert listing.class_names == ("17", "18")
    assert (listing.root / file).exists()


def test_further_columns_are_ignored(tmp_path):
    write(tmp_path, LISTS)
    text = "images/owl/1.jpg\t3\t5\nimages/owl/2.jpg 3 left 4\nimages/wren/1.jpg 10 0.5\n"
    (tmp_path / "train.txt").write_text(text)
    assert list_images("list_files", tmp_path).labels.tolist() == [0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "line", ["images/owl/3.jpg", "17", "images/owl/3.jpg x", "images/owl 3", "a.jpg -1", "a.jpg3"]
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_line_of_another_form_is_refused_with_its_number(part, line, tmp_path):
    write(tmp_path, LISTS)
    with (tmp_path / f"{part}.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError) as error:
        list_images("list_files", tmp_path)
    assert str(error.value) == (
        f"line 4 of {tmp_path}/{part}.txt is {line!r}; expected a path and the number of "
        "its class, like 'images/wren/1.jpg 17', in UTF-8"
    )


@pytest.mark.parametrize("part", ["test", "query", "gallery"])
def test_a_class_for_training_and_for_testing_is_refused(part, tmp_path):
    write(tmp_path, LISTS if part == "test" else RETRIEVAL)
    with (tmp_path / f"{part}.txt").open("a") as file:
        file.write("images/wren/2.jpg 10\n")
    message = r"1 classes both in train\.txt and among the test images, e\.g\. 10; metric learning"
    with pytest.raises(ValueError, match=message):
        list_images("list_files", tmp_path)


def test_a_list_that_names_missing_images_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
    write(tmp_path, LISTS)
    (tmp_path / "images/kite/2.jpg").unlink()
    message = r"1 of 6 listed images are missing below .*, e\.g\. images/kite/2\.jpg"
    with pytest.raises(FileNotFoundError, match=message):
        fingerprint(list_images("list_files", tmp_path))


@pytest.mark.parametrize(("lists", "part"), [(LISTS, "test"), (RETRIEVAL, "gallery")])
def test_a_missing_list_is_named(lists, part, tmp_path):
    write(tmp_path, lists)
    (tmp_path / f"{part}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{part}\.txt; write train.txt with test.txt"):
        list_images("list_files", tmp_path)


def test_a_folder_without_lists_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"does not hold list_files: there is no train\.txt"
    ):
        list_images("list_files", tmp_path)


def test_the_lists_may_lie_in_a_folder_of_the_data_set_s_name(tmp_path):
    (tmp_path / "list_files").mkdir()
    write(tmp_path / "list_files", LISTS)
    assert list_images("list_files", tmp_path).root == tmp_path / "list_files"


def test_paths_outside_of_the_folder_work(tmp_path):
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists", {"train": [("../a.jpg", 1)], "test": [("../b.jpg", 2)]})
    listing = list_images("list_files", tmp_path / "lists")
    assert all((listing.root / file).exists() for file in listing.files)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_list_is_refused(part, tmp_path):
    write(tmp_path, LISTS)
    (tmp_path / f"{part}.txt").write_text("\n")
    with pytest.raises(ValueError, match=rf"{part}\.txt names no images; give each on a line"):
        list_images("list_files", tmp_path)


def test_queries_with_nothing_to_find_at_all_are_refused(tmp_path):
    write(tmp_path, RETRIEVAL | {"gallery": [("other/1.png", 200), ("other/2.png", 201)]})
    with pytest.raises(ValueError, match=r"no class of query.txt in .* occurs in gallery.txt"):
        list_images("list_files", tmp_path)
