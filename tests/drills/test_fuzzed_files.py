"""Every file that comes from outside, damaged in many ways: it is read, or refused by its name.

A refusal is a ValueError or an OSError with the name of the file, or of its folder where several
files do not go together. Nothing hangs, fills the memory or runs code that a file holds. What
damage a file gets depends on its case and a number alone, and a failure names both. By name:
``pytest tests/drills/test_fuzzed_files.py``.
"""

import contextlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import traceback
import zlib
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from scipy.io import loadmat, savemat
from torch import nn

from dmlkit import chapters, published, saving
from dmlkit.chapters import chapter_parameters, parameter_defaults
from dmlkit.checking_rows import check_rows
from dmlkit.datasets import list_images
from dmlkit.datasets.checking import check_data
from dmlkit.datasets.decoding import decode, fingerprint
from dmlkit.datasets.readers.listing import Listing
from dmlkit.evaluation import evaluate_embeddings
from dmlkit.gallery import index_folder, load_gallery, save_gallery
from dmlkit.models import EmbeddingHead, EmbeddingModel, Trunk, make_trunk
from dmlkit.results import ChapterResults, read_row
from dmlkit.saving import load_model, save_model
from dmlkit.search import Trial
from dmlkit.swav import load_swav_checkpoint
from tests.official_trees import LAYOUTS, OFFICIAL, make_tree

# Pillow, SciPy and torch warn of damage that they read past.
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
CHAPTER = "02_baseline_losses"
MARKER = "a-file-ran-code"  # in the current folder, which is the test's own
SECONDS, BYTES = 60, 2 * 2**30  # what a single file may take; the slowest takes one second
MEMORY = resource.RLIMIT_AS


class Harm:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (MARKER,)


class HangError(BaseException):
    """A file was read for too long; no reader catches this."""


# Values of the wrong kind, for any place in a file.
VALUES = (None, True, -1, 0, 10**30, 10**400, -1.5, float("nan"), "", "a\0b", "../../x", [], {})
TENSORS = (
    torch.zeros(0),
    torch.full((32,), torch.nan),
    torch.ones(32, dtype=torch.complex64),
    torch.ones(32, dtype=torch.bfloat16),
    torch.ones(32, 3).to_sparse(),
    torch.ones(32, device="meta"),
    torch.zeros(1).expand(10**6, 10**6),  # four bytes in a file, four terabytes when copied
)
ARRAYS = [*map(np.array, ([], [[]], [np.nan] * 3, ["x"] * 3, [2**62]))]
# In the directory of an archive, of each member: version, flags, method of compression, lengths of
# its name and notes; checksum, sizes and place.
ZIP_FIELDS = [(at, "<H") for at in (6, 8, 10, 28, 30, 32)] + [(at, "<I") for at in (16, 20, 24, 42)]


def damaged(content, random):
    """Return how ``content`` is damaged, and the damaged bytes."""
    lines, data, at = content.split(b"\n"), bytearray(content), random.randrange(len(content) + 1)
    line, numbers = random.randrange(len(lines)), [*re.finditer(rb"\d+", content)]
    words = [*re.finditer(rb"[^\s,;]+", content)]

    def flip():
        for place in random.sample(range(len(data)), min(len(data), random.choice([1, 8, 64]))):
            data[place] = random.randrange(256)
        return bytes(data)

    def put(found, new):
        start, end = random.choice(found).span() if found else (at, at)
        return content[:start] + new + content[end:]

    ways = {
        "truncated": lambda: content[:at],
        "bytes flipped": flip,
        "NUL inserted": lambda: content[:at] + b"\0" * random.choice([1, 100]) + content[at:],
        "bytes inserted": lambda: content[:at] + b"\xff\xfe\x80" + content[at:],
        "other bytes": lambda: random.randbytes(500),
        "whole content twice": lambda: content + content,
        "line twice": lambda: b"\n".join([*lines[: line + 1], *lines[line:]]),
        "line left out": lambda: b"\n".join([*lines[:line], *lines[line + 1 :]]),
        "lines shuffled": lambda: b"\n".join(random.sample(lines, len(lines))),
        "huge number": lambda: put(numbers, b"9" * random.choice([10, 30, 5000])),
        "negative number": lambda: put(numbers, b"-7"),
        "path elsewhere": lambda: put(words, b"../../x"),
        "path in an archive": lambda: put(words, b"broken.zip/x.jpg"),
        "word left out": lambda: put(words, b""),
        "long word": lambda: put(words, b"x" * 5000),
        "quotation mark": lambda: put(words, b'"'),
        "deeply nested": lambda: content[:at] + b"[" * 100_000,
    }
    way = random.choice(list(ways))
    return way, ways[way]()


def spoiled(value, random, others):
    """Return a nested value with one place of it left out, or replaced by one of ``others``."""
    if isinstance(value, dict | list | tuple) and value and random.random() < 0.9:
        items = dict(value) if isinstance(value, dict) else dict(enumerate(value))
        key = random.choice(list(items))
        if random.random() < 0.2:
            items.pop(key)
        else:
            items[key] = spoiled(items[key], random, others)
        return items if isinstance(value, dict) else list(items.values())
    return random.choice(others)


def rewritten(suffix, content, random):
    """Return ``content`` with something wrong although its format is right; else None."""
    file, written = io.BytesIO(content), io.BytesIO()
    if suffix in (".json", ".ipynb"):
        return json.dumps(spoiled(json.loads(content), random, VALUES)).encode()
    if suffix == ".yaml":
        return yaml.safe_dump(spoiled(yaml.safe_load(content), random, VALUES)).encode()
    if suffix == ".zip":
        data, (at, kind) = bytearray(content), random.choice(ZIP_FIELDS)
        member = random.choice([*re.finditer(rb"PK\x01\x02", content)]).start()
        value = random.choice([0, 1, 8, 12, 14, 99, 2**16 - 1, 2**31, 2**32 - 1])
        struct.pack_into(kind, data, member + at, value % 256 ** struct.calcsize(kind))
        return bytes(data)
    if suffix == ".pt":
        stored = spoiled(torch.load(file, weights_only=True), random, VALUES + TENSORS)
        if isinstance(stored, dict) and "digest" in stored:
            with contextlib.suppress(Exception):  # of what has none; else the right one
                assert stored["state"]["head.linear.weight"].numel() < 10**6
                stored["digest"] = saving._digest(stored["about"], stored["state"])
        torch.save(stored, written)
    elif suffix == ".npz":
        with np.load(file) as arrays:
            stored = spoiled({**arrays}, random, ARRAYS)
        np.savez(written, **(stored if isinstance(stored, dict) else {"a": stored}))
    elif suffix == ".mat":
        stored = {name: value for name, value in loadmat(file).items() if name[0] != "_"}
        name = random.choice([*stored])
        if (fields := stored[name].dtype.names) and random.random() < 0.8:
            row = random.randrange(stored[name].size)
            stored[name][0, row][random.choice(fields)] = random.choice(ARRAYS)
            stored[name] = stored[name][:, random.choice([slice(None), slice(row, row + 1)])]
        else:
            stored[name] = random.choice(ARRAYS)
        savemat(written, stored)
    return written.getvalue() or None


def harmful():
    """Yield how and what: files that run code where they are unpickled."""
    yield "a pickle", pickle.dumps(Harm())
    stored = {"state_dict": Harm(), "kind": "dmlkit model", "version": 1}
    for is_new in (True, False):
        torch.save(stored, file := io.BytesIO(), _use_new_zipfile_serialization=is_new)
        yield f"a pickle of torch ({is_new=})", file.getvalue()
    for save in (np.save, np.savez):
        save(file := io.BytesIO(), np.array([Harm()]))
        yield f"a pickle of {save.__name__}", file.getvalue()
    yield "a call in YAML", f"STEPS: !!python/object/apply:os.mkdir [{MARKER}]\n".encode()


def bombs():
    """Yield how and what: images and archives of a few bytes that claim to be huge."""

    def chunk(kind, data):
        length, checksum = (struct.pack(">I", n) for n in (len(data), zlib.crc32(kind + data)))
        return length + kind + data + checksum

    zeros = zlib.compress(bytes(10**7))
    for side in (60_000, 2**31 - 1):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        end = chunk(b"IDAT", zeros) + chunk(b"IEND", b"")
        yield f"PNG of {side} pixels", b"\x89PNG\r\n\x1a\n" + head + end
        text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
        yield "PNG with text", b"\x89PNG\r\n\x1a\n" + head + text + end
    yield "GIF", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0"
    sizes = (0, 0, 54, 40, 10**9, -(10**9), 1, 24, *[0] * 6)
    yield "BMP", b"BM" + struct.pack("<IIIIiiHHIIiiII", *sizes)
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000,), }"
    yield "array", b"\x93NUMPY\1\0" + struct.pack("<H", len(header) + 1) + header.encode() + b"\n"


def attempts(case, path, count):
    """Yield the name of each damage, and a function that does it to the then missing ``path``.

    There are ``count`` random ones after those that every file gets.
    """
    content, write = path.read_bytes(), path.write_bytes
    yield "missing", lambda: None
    yield "a folder", path.mkdir
    yield "a dangling link", lambda: path.symlink_to("nowhere")
    yield "a link to itself", lambda: path.symlink_to(path.name)
    yield "empty", path.touch
    for way, data in (*harmful(), *bombs()):
        yield way, partial(write, data)
    for number in range(count):
        random = Random(f"{case} {path.name} {number}")
        way, data = "rewritten", rewritten(path.suffix, content, random) if number % 2 else None
        if data is None and path.suffix == ".mat":  # SciPy's reader dies of one flipped byte in 100
            way, data = "truncated", content[: random.randrange(len(content))]
        elif data is None:
            way, data = damaged(content, random)
        yield f"{way} (number {number})", partial(write, data)


# Each case makes valid files in a folder and returns those to damage; a function that reads them;
# and what a refusal may name instead of the file.


def data_set(name, folder, layout=""):
    root = make_tree(name, folder, num_classes=4, images_per_class=2, layout=layout)
    (root / "broken.zip").write_bytes(b"PK\3\4")
    suffixes = (".txt", ".csv", ".mat", ".zip")
    lists = [p for p in sorted(root.rglob("*")) if p.suffix in suffixes and p.stem != "broken"]
    files = lists or [min(root.rglob("*.??g"))]  # without a list, an image
    return files, partial(read_images, name, root), [root]


def own_lists(folder):
    for part, labels in {"train": (0, 1), "query": (2, 3), "gallery": (2, 3)}.items():
        lines = [f"{part}/{label}.jpg {label}\n" for label in labels]
        (folder / f"{part}.txt").write_text("".join(lines))
        (folder / part).mkdir()
        for label in labels:
            Image.new("RGB", (8, 8), (label, 0, 0)).save(folder / part / f"{label}.jpg")
    (folder / "broken.zip").write_bytes(b"PK\3\4")
    return [*folder.glob("*.txt")], partial(read_images, "list_files", folder), [folder]


def read_images(name, root):
    check_data(name, root)
    listing = list_images(name, root)
    fingerprint(listing)
    for row in range(len(listing.files)):
        decode(listing, row, 8)


def pictures(folder):
    options = {
        "a.jpg": ("RGB", {}),
        "b.jpeg": ("CMYK", {"progressive": True}),
        "c.png": ("RGBA", {}),
        "d.png": ("P", {"transparency": 3}),
        "e.webp": ("RGB", {"lossless": True}),
        "f.bmp": ("RGB", {}),
        "g.gif": ("P", {}),
        "h.tif": ("RGB", {"compression": "tiff_lzw"}),
        "i.tiff": ("L", {}),
    }
    noise = np.random.RandomState(0).randint(256, size=(12, 10, 3), dtype=np.uint8)
    for name, (mode, how) in options.items():
        Image.fromarray(noise).convert(mode).save(folder / name, **how)
    model, names = saved_model(folder / "colours.pt"), sorted(options)
    listing = Listing(folder, names, np.zeros(len(names), np.int64), ("all",), 0)

    def read():
        index_folder(model, folder)  # says which it skips
        for row in range(len(names)):
            decode(listing, row, 8)

    return [folder / name for name in names], read, []


def saved_model(path):
    torch.manual_seed(0)
    model = EmbeddingModel(make_trunk("small_convnet"), EmbeddingHead(32, 5)).eval()
    save_model(path, model, trunk="small_convnet", image_size=16)
    return load_model(path)


def model_and_gallery(folder):
    files = [folder / "model.pt", folder / "gallery.pt"]
    model, images = saved_model(files[0]), folder / "images"
    images.mkdir()
    for n in range(3):
        Image.new("RGB", (20, 30), (90 * n, 0, 0)).save(images / f"{n}.png")
    save_gallery(files[1], index_folder(model, images))

    def read():
        loaded = load_model(files[0])
        if loaded.digest == model.digest:
            index_folder(loaded, images, known=load_gallery(files[1], loaded))
            load_gallery(files[1], loaded).search(images / "1.png", 2)
        else:
            index_folder(loaded, images)

    return files, read, []


def weights(folder):
    path = folder / "weights.pt"
    torch.save(make_trunk("small_convnet").layers.state_dict(), path)
    return [path], lambda: make_trunk("small_convnet", weights=str(path)), []


def swav_checkpoint(folder):
    path, images = folder / "swav.pt", torch.zeros(1, 3, 8, 8)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    trunk = Trunk(layers, 4, convention="torchvision", freeze_batch_norm=False)
    state = {f"module.conv1.{k}": v for k, v in layers[0].state_dict().items()}
    state |= {f"module.bn1.{k}": v for k, v in layers[1].state_dict().items()}
    torch.save({"state_dict": state | {"module.prototypes.weight": torch.ones(2)}}, path)
    return [path], lambda: (load_swav_checkpoint(trunk, path), trunk(images)), []


def foreign_rows(folder):
    """A small part of committed results, with a search added."""
    results, methods = ROOT / "results" / "mini" / CHAPTER, ["contrastive", "frozen_trunk"]
    folder = folder / CHAPTER
    for name in ("runs", "parameters", "tables"):
        shutil.copytree(results / name, folder / name)
    for path in (folder / "runs").iterdir():
        if not path.name.startswith((*(f"{method}-seed" for method in methods), "tested-")):
            path.unlink()
    rows, judged = pd.read_csv(results / "runs.csv"), pd.read_csv(results / "claims.csv")
    rows[rows["method"].isin(methods)].to_csv(folder / "runs.csv", index=False)
    judged[judged["claim"] == "R1"].to_csv(folder / "claims.csv", index=False)
    table = pd.read_csv(results / "tables" / "main.csv", index_col=0, dtype=str)
    table.loc[methods].to_csv(folder / "tables" / "main.csv")
    notebook = json.loads((results / "chapter.ipynb").read_text())
    (folder / "chapter.ipynb").write_text(json.dumps(notebook | {"cells": notebook["cells"][:8]}))
    search = folder / "searches" / "contrastive-seed0-0.json"
    search.parent.mkdir()
    search.write_text(json.dumps({"trials": [{"settings": {}, "scores": {"5": 0.5}}]}))
    row = min((folder / "runs").glob("contrastive-*.json"))
    shared = [json.loads(row.read_text())[name] for name in ("parameters", "made", "metrics")]
    names = ("runs.csv", "claims.csv", "chapter.ipynb", "tables/main.csv", "tables/main.md")
    files = [row, row.with_suffix(".npz"), min((folder / "runs").glob("tested-*")), search]
    files += [folder / "parameters" / f"{name}.json" for name in shared]

    def read():
        if problems := check_rows(folder)[0]:
            raise ValueError("\n".join(problems))

    return [*files, *(folder / name for name in names)], read, [folder.name]


def own_rows(folder):
    """What a chapter left behind and finds when it is run again."""
    parameters = parameter_defaults(CHAPTER) | {"RESULTS_DIR": str(folder)}
    results = ChapterResults(CHAPTER, parameters)
    run, labels = results.run("contrastive", 1, "f"), torch.tensor([0, 0, 1, 1])
    results.save(run, ("a", "b"), evaluate_embeddings(torch.randn(4, 3), labels, ks=(1,)))

    def read():
        results.is_finished(run)
        read_row(results.folder / "runs" / f"{run.run_id}.json")
        results.by_class(run.run_id)
        results.trials("contrastive", 1, "f", lambda: [Trial({}, {5: 0.5})])
        results.stage("teacher", 1, "f", lambda: {"weights": torch.ones(3)})

    read()
    return [p for p in results.folder.glob("*/*") if p.suffix in (".json", ".npz", ".pt")], read, []


def profile(folder):
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns(".*"))
    chapters.BOOK = folder / "book"
    read = partial(chapter_parameters, CHAPTER, "smoke", {})
    return [chapters.BOOK / "profiles" / "smoke.yaml"], read, ["profile 'smoke'"]


def published_numbers(folder):
    (folder / "book").mkdir()
    shutil.copy(ROOT / "book" / "published.csv", folder / "book")
    published.PROJECT_ROOT = folder
    read = partial(published.published, CHAPTER, "cub200_2011")
    return [folder / "book" / "published.csv"], read, []


CASES = {
    **{name: partial(data_set, name) for name in OFFICIAL},
    **{
        f"{name}, {layout}": partial(data_set, name, layout=layout)
        for name, layouts in LAYOUTS.items()
        for layout in layouts[1:]
    },
    "own lists": own_lists,
    "pictures": pictures,
    "weights": weights,
    "SwAV checkpoint": swav_checkpoint,
    "model and gallery": model_and_gallery,
    "foreign rows": foreign_rows,
    "own rows": own_rows,
    "profile": profile,
    "published numbers": published_numbers,
}


@pytest.fixture(autouse=True)
def limits(monkeypatch, tmp_path):
    """The test's own folder and cache, and an end to what takes too long or too much memory."""
    monkeypatch.setenv("DMLKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(chapters, "BOOK", chapters.BOOK)  # which a case replaces
    monkeypatch.setattr(published, "PROJECT_ROOT", published.PROJECT_ROOT)
    monkeypatch.chdir(tmp_path)

    def hang(*_):
        raise HangError

    handler, (soft, hard) = signal.signal(signal.SIGALRM, hang), resource.getrlimit(MEMORY)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(MEMORY, (used + BYTES, hard))
    yield
    resource.setrlimit(MEMORY, (soft, hard))
    signal.signal(signal.SIGALRM, handler)


def complaint(read, names):
    """Return what is wrong with how ``read`` fails, if it does; nothing otherwise."""
    signal.alarm(SECONDS)
    try:
        read()
    except (ValueError, OSError) as error:
        causes = [error, error.__cause__, error.__context__]
        if any(isinstance(e, MemoryError) or "t allocate" in str(e) for e in causes):
            return f"takes too much memory: {error.__cause__}"
        if not any(str(name) in str(error) for name in names):
            return f"{type(error).__name__} names no file: {error}"
    except (Exception, HangError) as error:
        where = [f for f in traceback.extract_tb(error.__traceback__) if "dmlkit" in f.filename]
        place = f"{Path(where[-1].filename).name}:{where[-1].lineno}" if where else "the test"
        return f"{type(error).__name__} in {place}: {error}"
    finally:
        signal.alarm(0)
    return ""


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("case", CASES)
def test_damaged_files_are_read_or_refused_by_name(case, tmp_path):
    """A kind of file each (annotations and lists of each data set, .mat, images, weights, SwAV's
    checkpoint, models, galleries, rows, caches, profiles), cut, changed, swapped or rewritten in
    many ways: read, or refused in one sentence with its name; nothing hangs or fills the memory."""
    (tmp_path / "files").mkdir()
    files, read, other_names = CASES[case](tmp_path / "files")
    read()
    wrong = []
    for path in files:
        content = path.read_bytes()
        for way, damage in attempts(case, path, max(12, 60 // len(files))):
            remove(path)
            damage()
            said = complaint(read, [path.name, *other_names])
            if Path(MARKER).exists():
                Path(MARKER).rmdir()
                said = "the file ran code"
            if said:
                wrong.append(f"{case}: {path.name}, {way}: {said[:300]}")
        remove(path)
        path.write_bytes(content)
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:20])


def test_nothing_in_the_package_runs_code_that_a_file_holds():
    """No pickle, eval or unsafe YAML in the package; weights are read with weights_only."""
    names = r"pickle\.|import pickle|allow_pickle|yaml\.(?!safe_load|YAMLError)|eval\([^)]"
    for path in sorted((ROOT / "dmlkit").rglob("*.py")):
        text = path.read_text()
        assert not (found := re.search(rf"(?<![\w.])({names})", text)), f"{path}: {found[0]}"
        for call in re.findall(r"torch\.load\(.*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        assert text.count("torch.load") == len(re.findall(r"torch\.load\(.*\)", text)), path
