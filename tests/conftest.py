"""What several test files share: a tree of class folders, and the smoke book executed once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from dmlkit import chapters

ROOT = Path(__file__).parents[1]


@pytest.fixture
def class_tree(tmp_path):
    """Return a folder of 8 classes with 4 images each."""
    random = np.random.RandomState(0)
    for label in range(8):
        folder = tmp_path / "images" / f"class {label}"
        folder.mkdir(parents=True)
        for image in range(4):
            pixels = random.randint(256, size=(20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{image}.jpg")
    return tmp_path / "images"


@pytest.fixture
def copied_book(tmp_path, monkeypatch):
    """Return a copy of the book that a test may edit."""
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns(".*"))
    monkeypatch.setattr(chapters, "BOOK", tmp_path / "book")
    return tmp_path / "book"


@pytest.fixture(scope="session")
def run_dmlkit():
    """Return a function that runs the dmlkit command and returns the finished process."""

    def run(*arguments):
        command = [sys.executable, "-m", "dmlkit.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, run_dmlkit):
    """Return the results folder of the smoke profile, executed once for all tests."""
    of_all = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        of_all = of_all.parent  # which the processes share
    # Chapter 7 reads the folders beside it: there must be none.
    folder, failure = of_all / "book" / "smoke", of_all / "smoke-failure"
    with FileLock(of_all / "smoke-lock"):
        if not failure.exists():
            finished = run_dmlkit("run", "--profile", "smoke", "--results-dir", folder)
            failure.write_text(finished.stderr if finished.returncode else "")
    assert failure.read_text() == ""
    return folder
