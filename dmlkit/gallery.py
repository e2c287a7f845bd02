"""Search a folder of one's own images with another image, by a saved model.

A gallery holds an embedding and a file name for each image, and no image: a hundred thousand
photographs take 0.2 GB at 512 dimensions. Images are decoded by all cores, a few at a time, and
embedded in batches. The search compares the query with every image (faiss, exact inner products).

Images are read as the book's data sets are, so what a camera noted about its orientation is not
applied here either.
"""

import os
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from dmlkit.datasets.decoding import UNREADABLE, decode_rgb, in_parallel
from dmlkit.datasets.readers import class_folder
from dmlkit.datasets.readers.listing import Listing
from dmlkit.models.weights import fits
from dmlkit.saving import SavedModel, read_stored, write_stored
from dmlkit.transforms import centre_crop

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Python 3.12 and later dislike how it was wrapped
    import faiss

KIND, VERSION = "dmlkit gallery", 1
SUFFIXES = class_folder.SUFFIXES | {".gif", ".tif", ".tiff"}

State = tuple[int, int]  # bytes of a file and its time of change, ns
Decoded = tuple[Tensor, tuple[int, int]]  # a square (3, S, S) uint8; original height and width


@dataclass(frozen=True)
class Gallery:
    """The embeddings of a folder of images.

    Args:
        model: what made them.
        folder: the folder that was indexed.
        files: N file names, relative to the folder, with forward slashes, sorted.
        embeddings: (N, D) float32 unit rows, on the CPU.
        states: of each file when it was indexed.
        skipped: name of each image file that could not be read, and why.
        passed_over: how many files of other kinds there were, by suffix.
    """

    model: SavedModel = field(repr=False)
    folder: Path
    files: list[str] = field(repr=False)
    embeddings: Tensor = field(repr=False)
    states: list[State] = field(repr=False)
    skipped: dict[str, str]
    passed_over: dict[str, int]

    def __len__(self) -> int:
        """Return the number of images, N."""
        return len(self.files)

    def search(self, query: str | Path, k: int = 10) -> pd.DataFrame:
        """Return the k images most similar to a query image, or to each image of a folder.

        A query that is itself in the gallery, as a file and not as a copy, is left out of its own
        answer. In a folder of queries, files that cannot be read are named and skipped.

        Args:
            query: an image file, or a folder, searched through with all its sub-folders.
            k: answers to each query, fewer where the gallery has fewer.

        Returns:
            A line per answer, nearest first: ``query``, the name of the file, in a folder with its
            sub-folders; ``rank`` from 1; ``path``, relative to the gallery's folder; and
            ``similarity``, the cosine, in [-1, 1].

        Raises:
            FileNotFoundError: there is no such file or folder.
            ValueError: a k below 1, a query that is no image, or a folder without images.
        """
        if k < 1:
            raise ValueError(f"{k=} asks for no answer; use 1 or more")
        query = Path(query).expanduser()
        if query.is_dir():
            files, _ = _list_images(query)
            found, skipped = _embed_files(self.model, query, files)
            _say_skipped(skipped)
            asked = {file: query / file for file in found}
        else:
            found = {query.name: _embed_one(self.model, query)}
            asked = {query.name: query}
        if not found:
            raise ValueError(f"no image of {query} can be read")
        # One more than asked for, since the first may be the query itself.
        scores, rows = self._index.search(torch.stack(list(found.values())).numpy(), k + 1)
        lines = []
        for name, its_scores, its_rows in zip(found, scores.clip(-1, 1), rows, strict=True):
            own = self._row_of(asked[name])
            answers = [
                (self.files[row], float(score))
                for row, score in zip(its_rows, its_scores, strict=True)
                if row not in (-1, own)  # -1: there are no more
            ][:k]
            lines += [(name, rank, *answer) for rank, answer in enumerate(answers, start=1)]
        return pd.DataFrame(lines, columns=["query", "rank", "path", "similarity"])

    @cached_property
    def _index(self) -> faiss.IndexFlatIP:
        index = faiss.IndexFlatIP(self.embeddings.shape[1])
        index.add(self.embeddings.numpy())
        return index

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {file: row for row, file in enumerate(self.files)}

    def _row_of(self, path: Path) -> int | None:
        """Return the row of the gallery that a file is, or None."""
        path, folder = path.resolve(), self.folder.resolve()
        if not path.is_relative_to(folder):
            return None
        return self._rows.get(path.relative_to(folder).as_posix())


def index_folder(
    model: SavedModel, folder: str | Path, *, known: Gallery | None = None, batch_size: int = 64
) -> Gallery:
    """Embed all images of a folder and its sub-folders, whatever their layout.

    Images are the files called ``.jpg``, ``.jpeg``, ``.png``, ``.webp``, ``.bmp``, ``.gif`` (the
    first picture) or ``.tif``; other files and hidden ones are passed over and counted. An image
    that cannot be read is named and skipped, as one broken file should not cost the others.

    Args:
        model: what ``load_model`` returned; it works where it is, on a CPU or a GPU.
        folder: the folder, as ``open`` understands it.
        known: an earlier gallery of the same folder and model. Files that have kept their size and
            time of change are taken from it, so that only new ones are embedded.
        batch_size: images embedded at a time.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no image that can be read, or ``known`` was made by another model.
        TypeError: the model is not what ``load_model`` returned.
    """
    _check_type(model)
    folder = Path(folder).expanduser()
    files, passed_over = _list_images(folder)
    states = {file: _state(folder / file) for file in files}
    found: dict[str, Tensor] = {}
    if known is not None:
        _check_model(f"the gallery of {known.folder}", known.model.digest, model)
        rows = zip(known.files, known.embeddings, known.states, strict=True)
        found = {file: row for file, row, state in rows if states.get(file) == state}
    new, skipped = _embed_files(model, folder, [f for f in files if f not in found], batch_size)
    found |= new
    _say_skipped(skipped)
    if passed_over:
        kinds = ", ".join(f"{suffix or 'no suffix'} {n:,}" for suffix, n in passed_over.items())
        print(f"passed over, being no images: {kinds}")
    if not found:
        raise ValueError(f"no image of {folder} can be read")
    files = [file for file in files if file in found]
    return Gallery(
        model,
        folder.absolute(),
        files,
        torch.stack([found[file] for file in files]),
        [states[file] for file in files],
        skipped,
        passed_over,
    )


def save_gallery(path: str | Path, gallery: Gallery) -> None:
    """Write a gallery to a file, whole or not at all. It holds neither the model nor any image.

    Raises:
        PermissionError: the file cannot be written.
    """
    stored = {
        **{"kind": KIND, "version": VERSION, "model": gallery.model.digest},
        **{"folder": str(gallery.folder), "files": gallery.files, "states": gallery.states},
        **{"skipped": gallery.skipped, "passed_over": gallery.passed_over},
        "embeddings": gallery.embeddings,
    }
    write_stored(path, stored)


def load_gallery(path: str | Path, model: SavedModel) -> Gallery:
    """Return the gallery that ``save_gallery`` wrote, to be searched with the model that made it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else, is damaged, was written by a newer version, or
            the gallery was made by another model, to whose embeddings a query's mean nothing.
        TypeError: the model is not what ``load_model`` returned.
    """
    _check_type(model)
    stored = read_stored(path, KIND, VERSION, "dmlkit.gallery.save_gallery")
    _check_model(str(path), stored.get("model"), model)
    names = ("files", "embeddings", "states", "skipped", "passed_over")
    parts = {name: stored.get(name) for name in names}
    folder = stored.get("folder")
    if not isinstance(folder, str) or "\0" in folder or not _is_whole(**parts, model=model):
        raise ValueError(
            f"{path} is damaged: its images, their states and their embeddings do not go together; "
            "index the folder again"
        )
    return Gallery(model, Path(folder), **parts)


def _check_type(model: SavedModel) -> None:
    if not isinstance(model, SavedModel):
        raise TypeError(f"a {type(model).__name__} is no model; give what load_model returned")


def _check_model(what: str, digest: str | None, model: SavedModel) -> None:
    if digest != model.digest:
        raise ValueError(
            f"{what} was made by another model ({digest}, not {model.digest}); load that one, or "
            "index the folder again with this one"
        )


def _is_whole(
    files: Any, embeddings: Any, states: Any, skipped: Any, passed_over: Any, *, model: SavedModel
) -> bool:
    """Whether these can be the parts of a gallery of ``model``, see ``Gallery``."""
    if not (isinstance(files, list) and files and all(isinstance(file, str) for file in files)):
        return False
    wanted = torch.empty(len(files), model.embedding_dim, device="meta")
    return (
        fits(embeddings, wanted)
        and embeddings.dtype == torch.float32
        and bool(embeddings.isfinite().all())
        and isinstance(states, list)
        and len(states) == len(files)
        and all(state is None or isinstance(state, tuple) for state in states)
        and isinstance(skipped, dict)
        and isinstance(passed_over, dict)
    )


def _list_images(folder: Path) -> tuple[list[str], dict[str, int]]:
    """Return the names of all image files below a folder, sorted, and how many others there are.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give one that holds images")
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # macOS archives leave "._name.jpg" files that only look like images.
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    images = sorted(p.relative_to(folder).as_posix() for p in found if _is_image(p))
    others = Counter(p.suffix.lower() for p in found if not _is_image(p))
    if not images:
        kinds = " ".join(sorted(SUFFIXES))
        raise ValueError(
            f"{folder} holds no image of the kinds {kinds}, and {others.total():,} other files; "
            "give another folder, or convert them"
        )
    return images, dict(others.most_common())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _state(path: Path) -> State | None:
    """Return bytes and time of change of a file, None where it cannot be asked."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _embed_files(
    model: SavedModel, folder: Path, files: list[str], batch_size: int = 64
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the embedding (D,) of each file that can be read, and why the others cannot."""
    listing = Listing(folder, files, np.zeros(len(files), np.int64), ("images",), 0)
    decoded = in_parallel(
        "indexing", lambda row: _decode(folder / files[row], model.cache_size), listing
    )
    found: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    waiting: dict[str, Decoded] = {}
    for file, image in zip(files, decoded, strict=True):
        if isinstance(image, str):
            skipped[file] = image
        else:
            waiting[file] = image
        if len(waiting) == batch_size or (waiting and file == files[-1]):
            found |= zip(waiting, _embed(model, list(waiting.values())), strict=True)
            waiting = {}
    return found, skipped


def _embed_one(model: SavedModel, path: Path) -> Tensor:
    """Return the embedding (D,) of one image file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file or folder {path}; give an image")
    image = _decode(path, model.cache_size)
    if isinstance(image, str):
        raise ValueError(f"{path} cannot be searched with: {image}")
    return _embed(model, [image])[0]


def _decode(path: Path, size: int) -> Decoded | str:
    """Return an image as a square of ``size`` pixels with its original size, or why it cannot."""
    try:
        pixels = decode_rgb(path.read_bytes())
    except UnidentifiedImageError:
        return "it is no image of a known kind"
    except UNREADABLE as error:
        return getattr(error, "strerror", None) or str(error)
    return resize(pixels, [size, size], antialias=True), tuple(pixels.shape[1:])


@torch.no_grad()
def _embed(model: SavedModel, images: list[Decoded]) -> Tensor:
    """Return the embeddings (B, D) of decoded images, cropped as in the model's evaluation."""
    squares = torch.stack([square for square, _ in images]).to(model.device)
    sizes = None
    if model.short_side:  # rounded as in dmlkit.datasets.read_images
        original = torch.tensor([size for _, size in images])
        sizes = model.short_side * original // original.min(dim=1, keepdim=True).values
    cropped = centre_crop(squares, sizes, image_size=model.image_size)
    return model.model.eval()(cropped).float().cpu()


def _say_skipped(skipped: dict[str, str]) -> None:
    """Name the images that could not be read: a few of them, if they are many."""
    if skipped:
        few = [f"{file} ({reason})" for file, reason in list(skipped.items())[:5]]
        more = f" and {len(skipped) - len(few):,} more" if len(skipped) > len(few) else ""
        print(f"skipped {len(skipped):,} unreadable: {', '.join(few)}{more}")
