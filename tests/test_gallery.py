"""Galleries: found by hand, of untidy folders, stored and loaded, and like the evaluation's."""

import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from dmlkit import gallery as module
from dmlkit.datasets import list_images, read_images
from dmlkit.evaluation import embed
from dmlkit.features import CachedTrunk
from dmlkit.gallery import index_folder, load_gallery, save_gallery
from dmlkit.models import EmbeddingHead, EmbeddingModel, make_trunk
from dmlkit.saving import SavedModel, load_model, save_model
from dmlkit.transforms import centre_crop

COLOURS = {
    "red.png": (255, 0, 0),
    "deep/er/yellow.JPG": (255, 255, 0),
    "green.jpeg": (0, 255, 0),
    "deep/blue.bmp": (0, 0, 255),
}


class MeanColour(nn.Module):
    """Embeds an image as the direction of its mean colour."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.trunk, self.head = CachedTrunk(3), EmbeddingHead(3, 3, project=False)

    def forward(self, images):
        return normalize(self.scale * images.mean(dim=(2, 3)), dim=1)


@pytest.fixture
def model():
    return SavedModel(MeanColour(), "none", 4, 4, 0, "", "0123")


def paint(path, colour, mode="RGB", size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of four images of one colour each, in no particular layout."""
    for name, colour in COLOURS.items():
        paint(tmp_path / "shelf" / name, colour)
    return tmp_path / "shelf"


@pytest.mark.parametrize("use", [index_folder, lambda model, path: load_gallery(path, model)])
def test_what_is_no_loaded_model_is_refused_before_anything_is_read(use, tmp_path):
    with pytest.raises(TypeError, match="a str is no model; give what load_model returned"):
        use("birds.pt", tmp_path / "none")


def test_the_nearest_come_first_with_their_cosines(model, folder, tmp_path):
    gallery = index_folder(model, folder)
    assert gallery.files == ["deep/blue.bmp", "deep/er/yellow.JPG", "green.jpeg", "red.png"]
    found = gallery.search(paint(tmp_path / "query.png", (200, 100, 0)), k=3)
    assert found["query"].tolist() == ["query.png"] * 3
    assert found["rank"].tolist() == [1, 2, 3]
    assert found["path"].tolist() == ["deep/er/yellow.JPG", "red.png", "green.jpeg"]
    # The query is (2, 1, 0) / sqrt 5; yellow (1, 1, 0) / sqrt 2, and JPEG shifts colours a little.
    expected = [3 / math.sqrt(10), 2 / math.sqrt(5), 1 / math.sqrt(5)]
    assert found["similarity"].tolist() == pytest.approx(expected, abs=0.01)


def test_a_query_of_the_gallery_finds_its_copies_but_not_itself(model, folder):
    shutil.copy(folder / "red.png", folder / "copy.png")
    found = index_folder(model, folder).search(folder / "red.png", k=1)
    assert found["path"].tolist() == ["copy.png"]
    assert found["similarity"][0] == pytest.approx(1, abs=1e-6) and found["similarity"][0] <= 1


def test_the_file_itself_is_known_however_its_path_is_written(model, folder, monkeypatch):
    gallery = index_folder(model, folder)
    monkeypatch.chdir(folder / "deep")
    for query in ("blue.bmp", "../deep/blue.bmp", str(folder / "deep" / "blue.bmp")):
        assert "deep/blue.bmp" not in set(gallery.search(query)["path"])


def test_there_are_no_more_answers_than_images(model, folder, tmp_path):
    gallery = index_folder(model, folder)
    outside = paint(tmp_path / "query.png", (9, 9, 9))
    assert len(gallery.search(outside, k=100)) == len(gallery) == 4
    assert len(gallery.search(folder / "red.png", k=100)) == 3
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k={k} asks for no answer"):
            gallery.search(outside, k=k)


def test_a_folder_of_queries_is_answered_query_by_query(model, folder, tmp_path, capsys):
    paint(tmp_path / "asked" / "a" / "reddish.png", (250, 10, 0))
    paint(tmp_path / "asked" / "bluish.png", (0, 10, 250))
    (tmp_path / "asked" / "broken.jpg").write_bytes(b"no image")
    found = index_folder(model, folder).search(tmp_path / "asked", k=1)
    assert found[["query", "path"]].to_numpy().tolist() == [
        ["a/reddish.png", "red.png"],
        ["bluish.png", "deep/blue.bmp"],
    ]
    assert "skipped 1 unreadable: broken.jpg (it is no image of a known kind)" in (
        capsys.readouterr().out
    )


def test_searching_a_folder_by_itself_leaves_each_image_out_of_its_own_answers(model, folder):
    found = index_folder(model, folder).search(folder)
    assert len(found) == 4 * 3
    assert (found["query"] != found["path"]).all()


def test_an_untidy_folder_is_indexed_and_what_is_left_out_is_said(model, folder, capsys):
    (folder / "notes.txt").write_text("a list")
    (folder / "README").write_text("no suffix")
    (folder / "._red.png").write_bytes(b"left by an archive")
    paint(folder / ".thumbnails" / "red.png", (255, 0, 0))
    whole = paint(folder / "whole.jpg", (1, 2, 3), size=(200, 200)).read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "link.png").symlink_to(folder / "absent.png")
    gallery = index_folder(model, folder)
    assert gallery.files == sorted(COLOURS)
    assert set(gallery.skipped) == {"half.jpg", "empty.png", "link.png"}
    assert "truncated" in gallery.skipped["half.jpg"]
    assert gallery.passed_over == {".txt": 1, "": 1}
    said = capsys.readouterr().out
    assert "skipped 3 unreadable: empty.png" in said and "half.jpg (image file is trunc" in said
    assert "passed over, being no images: " in said and ".txt 1" in said


def test_all_kinds_of_images_become_rgb(model, tmp_path):
    paint(tmp_path / "kinds" / "grey.png", 90, "L")
    paint(tmp_path / "kinds" / "alpha.png", (255, 0, 0, 10), "RGBA")
    paint(tmp_path / "kinds" / "sixteen.png", 30_000, "I;16")
    paint(tmp_path / "kinds" / "palette.gif", 3, "P")
    paint(tmp_path / "kinds" / "cmyk.tif", (0, 255, 255, 0), "CMYK")
    gallery = index_folder(model, tmp_path / "kinds")
    of = dict(zip(gallery.files, gallery.embeddings.tolist(), strict=True))
    assert len(of) == 5
    assert of["alpha.png"] == pytest.approx([1, 0, 0], abs=1e-6)
    assert of["grey.png"] == of["sixteen.png"] == pytest.approx([3**-0.5] * 3, abs=1e-6)


def test_folders_without_images_are_refused(model, folder, tmp_path):
    (tmp_path / "words").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent; give one"):
        index_folder(model, tmp_path / "absent")
    with pytest.raises(ValueError, match="holds no image of the kinds .bmp .gif .jpeg .* 0 other"):
        index_folder(model, tmp_path / "words")
    (tmp_path / "words" / "photo.heic").write_bytes(b"")
    with pytest.raises(ValueError, match="and 1 other files; .*convert them"):
        index_folder(model, tmp_path / "words")
    (tmp_path / "words" / "photo.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image of .*words can be read"):
        index_folder(model, tmp_path / "words")


def test_a_query_that_is_no_image_is_refused(model, folder):
    gallery = index_folder(model, folder)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*absent.png"):
        gallery.search(folder / "absent.png")
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"broken.png cannot be searched with: it is no image"):
        gallery.search(folder / "broken.png")


def test_a_gallery_comes_back_to_the_last_bit(model, folder, tmp_path):
    (folder / "notes.txt").write_text("a list")
    (folder / "broken.png").write_bytes(b"no image")
    paint(folder / "wören ✓.png", (3, 2, 1))
    gallery = index_folder(model, folder)
    save_gallery(tmp_path / "stored" / "shelf.gallery", gallery)
    found = load_gallery(tmp_path / "stored" / "shelf.gallery", model)
    assert torch.equal(found.embeddings, gallery.embeddings)
    for name in ("files", "folder", "states", "skipped", "passed_over"):
        assert getattr(found, name) == getattr(gallery, name), name
    query = paint(tmp_path / "query.png", (200, 100, 0))
    assert found.search(query).equals(gallery.search(query))


def test_a_gallery_is_searched_only_with_the_model_that_made_it(model, folder, tmp_path):
    gallery = index_folder(model, folder)
    save_gallery(tmp_path / "shelf.gallery", gallery)
    other = SavedModel(MeanColour(), "none", 4, 4, 0, "", "4567")
    with pytest.raises(ValueError, match=r"shelf.gallery was made by another model .0123, not 45"):
        load_gallery(tmp_path / "shelf.gallery", other)
    with pytest.raises(ValueError, match="was made by another model"):
        index_folder(other, folder, known=gallery)


def test_damaged_and_other_files_are_refused(model, folder, tmp_path):
    path = tmp_path / "shelf.gallery"
    with pytest.raises(FileNotFoundError, match="no file .*save_gallery"):
        load_gallery(path, model)
    save_gallery(path, index_folder(model, folder))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"shelf.gallery cannot be read .*damaged"):
        load_gallery(path, model)
    torch.save({"kind": "dmlkit model", "version": 1}, path)
    with pytest.raises(ValueError, match="holds no dmlkit gallery"):
        load_gallery(path, model)
    torch.save({"kind": "dmlkit gallery", "version": 9}, path)
    with pytest.raises(ValueError, match="newer dmlkit"):
        load_gallery(path, model)


def test_what_is_known_is_not_embedded_again(model, folder, monkeypatch):
    gallery = index_folder(model, folder)
    paint(folder / "new.png", (5, 5, 5))
    paint(folder / "red.png", (0, 200, 255), size=(9, 9))  # another picture of that name
    (folder / "green.jpeg").unlink()
    seen, decode = [], module._decode
    monkeypatch.setattr(
        module, "_decode", lambda path, size: seen.append(path) or decode(path, size)
    )
    found = index_folder(model, folder, known=gallery)
    assert sorted(path.name for path in seen) == ["new.png", "red.png"]
    whole = index_folder(model, folder)
    assert (
        found.files == whole.files == ["deep/blue.bmp", "deep/er/yellow.JPG", "new.png", "red.png"]
    )
    torch.testing.assert_close(found.embeddings, whole.embeddings)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_images_are_embedded_a_few_at_a_time(model, folder, monkeypatch, batch_size):
    sizes, embed_batch = [], module._embed
    monkeypatch.setattr(
        module,
        "_embed",
        lambda model, images: sizes.append(len(images)) or embed_batch(model, images),
    )
    (folder / "zzz.png").write_bytes(b"no image")  # the last one is no image
    gallery = index_folder(model, folder, batch_size=batch_size)
    assert sum(sizes) == 4 and max(sizes) <= batch_size
    torch.testing.assert_close(gallery.embeddings, index_folder(model, folder).embeddings)


def test_the_search_is_exact(model, tmp_path):
    generator = torch.Generator().manual_seed(0)
    points = normalize(torch.randn(300, 3, generator=generator), dim=1)
    files = [f"{number:03d}.png" for number in range(300)]
    gallery = module.Gallery(model, tmp_path, files, points, [(0, 0)] * 300, {}, {})
    query = paint(tmp_path / "asked.png", (30, 200, 90))
    asked = index_folder(model, tmp_path).embeddings[0]
    found = gallery.search(query, k=300)
    order = (points @ asked).argsort(descending=True)
    assert found["path"].tolist() == [files[row] for row in order]
    assert found["similarity"].to_numpy() == pytest.approx(
        (points @ asked)[order].numpy(), abs=1e-6
    )


@pytest.mark.parametrize("short_side", [0, 24])
def test_embeddings_are_those_of_the_evaluation(tmp_path, monkeypatch, short_side):
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
    random = np.random.RandomState(0)
    for label in range(4):
        for image in range(3):
            pixels = random.randint(256, size=(30 + 5 * label, 40, 3), dtype=np.uint8)
            path = tmp_path / "images" / f"class {label}" / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    torch.manual_seed(0)
    trunk = make_trunk("small_convnet")
    network = EmbeddingModel(trunk, EmbeddingHead(trunk.out_features, 8)).eval()
    sizes = {"image_size": 20, "cache_size": 24, "short_side": short_side}
    save_model(tmp_path / "model.pt", network, trunk="small_convnet", **sizes)

    images = read_images(list_images("class_folder", tmp_path / "images"), 24, short_side)
    view = partial(centre_crop, image_size=20)
    expected = embed(network, images, view, device=torch.device("cpu"))

    gallery = index_folder(load_model(tmp_path / "model.pt"), tmp_path / "images")
    torch.testing.assert_close(gallery.embeddings, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"embeddings": torch.ones(2, 3)},
        {"embeddings": torch.ones(4, 2)},
        {"embeddings": torch.ones(1).expand(4, 3)},
        {"embeddings": torch.full((4, 3), torch.nan)},
        {"files": [1, 2, 3, 4]},
        {"states": []},
        {"folder": "no\0folder"},
        {"skipped": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_parts_that_do_not_go_together_are_refused(change, model, folder, tmp_path):
    path = tmp_path / "shelf.gallery"
    save_gallery(path, index_folder(model, folder))
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(ValueError, match=r"shelf.gallery is damaged: .*; index the folder again"):
        load_gallery(path, model)
