"""Rows are stale when code changed that can change them, and only then."""

from pathlib import Path

import pytest

from dmlkit import fingerprint
from dmlkit.chapters import read_notebook
from dmlkit.fingerprint import code_fingerprint, modules_behind

ROOT = Path(__file__).parents[1]
CHAPTER = "02_baseline_losses"


@pytest.mark.parametrize(
    ("old", "new", "is_stale"),
    [
        ("Adam(groups", "torch.optim.SGD(groups", True),
        ("# ## The data\n", "# ## Data\n", False),
        ("STEPS: int = 160", "STEPS: int = 161", False),
        ('results.save_figure("umap"', 'results.save_figure("map"', False),
    ],
    ids=["training code", "prose", "a parameter, which stands in the row", "a figure"],
)
def test_only_code_that_can_change_a_run_makes_rows_stale(copied_book, old, new, is_stale):
    before = code_fingerprint(CHAPTER)
    source = copied_book / f"{CHAPTER}.py"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    assert (code_fingerprint(CHAPTER) != before) == is_stale


def code_cells():
    notebook = read_notebook(ROOT / "book" / f"{CHAPTER}.py")
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_a_kernel_that_executed_the_chapter_as_it_stands_has_its_fingerprint():
    injected = "# Parameters\nSTEPS = 3\nSEEDS = [1]"
    executed = ["", *code_cells(), injected, code_cells()[5]]
    assert code_fingerprint(CHAPTER, executed) == code_fingerprint(CHAPTER)


@pytest.mark.parametrize("extra", ["losses['contrastive'] = None", "%time"], ids=["code", "magic"])
def test_a_kernel_that_executed_anything_else_has_another(extra):
    edited = code_fingerprint(CHAPTER, [*code_cells(), extra])
    assert edited.startswith("edited-")
    assert edited != code_fingerprint(CHAPTER, [*code_cells(), extra, "more = 1"])


def test_a_kernel_that_skipped_a_cell_has_another():
    cells = [cell for cell in code_cells() if "MPerClassSampler(" not in cell]
    assert code_fingerprint(CHAPTER, cells).startswith("edited-")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that reads a package of the files given, as dmlkit is read."""

    def read(files):
        for name, text in files.items():
            path = tmp_path / "dmlkit" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(fingerprint, "PROJECT_ROOT", tmp_path)
        monkeypatch.setattr(fingerprint, "MODULES", fingerprint._read_package())

    return read


FILES = {
    "__init__.py": "",
    "losses/__init__.py": (
        "from dmlkit.losses.one import One as One\n"
        "from dmlkit.losses.two import (\n    Two as Two,\n)\n"
        "from dmlkit.names import CLASSES\n\nLOSSES = CLASSES\n"
    ),
    "losses/one.py": "import dmlkit.distances\n",
    "losses/two.py": "def lazily():\n    from dmlkit import miners\n",
    "names.py": "CLASSES = 2\n",
    "distances.py": "",
    "miners.py": "from dmlkit.plots import show\n",
    "plots.py": "from dmlkit.distances import show\n",
    "datasets/readers/birds.py": "",
}


def test_only_modules_that_a_cell_asks_for_count_directly_or_through_others(package):
    package(FILES)
    assert modules_behind(["from dmlkit.losses import One"]) == {
        *("dmlkit.losses.one", "dmlkit.distances")
    }
    assert modules_behind(["from dmlkit.losses import Two"]) == {
        *("dmlkit.losses.two", "dmlkit.miners")  # what only shows rows does not count
    }
    assert modules_behind(["from dmlkit.losses import LOSSES as KNOWN"]) == {
        *("dmlkit.losses", "dmlkit.names")
    }
    assert modules_behind(["from dmlkit.datasets.readers import birds", "import torch"]) == set()
    everything = modules_behind(["%matplotlib inline"])
    assert {"dmlkit", "dmlkit.losses", "dmlkit.losses.two", "dmlkit.names"} < everything
    assert not {"dmlkit.plots", "dmlkit.datasets.readers.birds"} & everything


@pytest.mark.parametrize(
    ("file", "is_stale"),
    [
        ("losses/one.py", True),
        ("distances.py", True),
        ("losses/two.py", False),
        ("miners.py", False),
        ("names.py", False),
    ],
)
def test_an_edit_changes_the_digest_of_what_it_can_change(package, file, is_stale):
    cells = ["from dmlkit.losses import One"]
    package(FILES)
    before = fingerprint._digest(cells)
    package({file: FILES[file] + "changed = True\n"})
    assert (fingerprint._digest(cells) != before) == is_stale


def test_passing_on_another_name_changes_nothing_and_other_code_of_a_package_does(package):
    cells, init = ["from dmlkit.losses import LOSSES"], FILES["losses/__init__.py"]
    package(FILES)
    before = fingerprint._digest(cells)
    package({"losses/__init__.py": "from dmlkit.losses.three import Three as Three\n" + init})
    assert fingerprint._digest(cells) == before
    package({"losses/__init__.py": init + "LOSSES += 1\n"})
    assert fingerprint._digest(cells) != before
