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
    first, *rest = code_cells()
    looked = ["rows.head(3)", "print(len(rows))", "table", "# nothing", "rows.(", "N = 5"]
    looked.append("get_ipython().run_line_magic('pinfo', 'losses')")  # losses?
    executed = ["", first, injected, *rest, *looked, rest[5]]
    assert code_fingerprint(CHAPTER, executed) == code_fingerprint(CHAPTER)


def test_parameters_set_again_want_all_cells_that_used_them_executed_again():
    cells = code_cells()
    runs = next(i for i, cell in enumerate(cells) if "results.run(" in cell)
    changed = cells[0].replace("STEPS: int = 160", "STEPS: int = 10")
    for between in ([], cells[1:3], cells[1 : runs - 1]):
        with pytest.raises(ValueError, match="parameters were set again .* Run All"):
            code_fingerprint(CHAPTER, [*cells, changed, *between, cells[runs]])
    executed = [*cells, changed, *cells[1 : runs + 1]]
    assert code_fingerprint(CHAPTER, executed) == code_fingerprint(CHAPTER)
    # Nothing is set again by the same values, or by names that are no parameters.
    for same in (cells[0], "N = 5"):
        executed = [*cells, same, cells[runs]]
        assert code_fingerprint(CHAPTER, executed) == code_fingerprint(CHAPTER)
    # A cell on the way, executed a second time: those behind it are still to come.
    executed = [*cells, changed, *cells[1:runs]]
    assert code_fingerprint(CHAPTER, executed) == code_fingerprint(CHAPTER)


@pytest.mark.parametrize(
    "extra",
    [
        "losses['contrastive'] = None",
        "get_ipython().run_line_magic('time', 'losses.clear()')",
        "losses.clear()",
        "(STEPS := 3)",
        "N = losses.clear()",
    ],
    ids=["code", "magic", "call", "assignment in an expression", "call whose value has a name"],
)
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
    "__init__.py": '"""The package."""\n',
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
    "datasets/__init__.py": "",
    "datasets/readers/birds.py": "",
    "metrics/__init__.py": (
        "from dmlkit.distances import far as far\n\nDISTANCES = [far]\n"  # used here as well
    ),
}
LOSSES = {"dmlkit", "dmlkit.losses", "dmlkit.names"}  # a package is executed before its modules


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("from dmlkit.losses import One", {*LOSSES, "dmlkit.losses.one", "dmlkit.distances"}),
        # What only shows rows does not count.
        ("from dmlkit.losses import Two", {*LOSSES, "dmlkit.losses.two", "dmlkit.miners"}),
        ("from dmlkit.losses import LOSSES as KNOWN", LOSSES),
        ("from dmlkit.metrics import DISTANCES", {"dmlkit", "dmlkit.metrics", "dmlkit.distances"}),
        ("from dmlkit.datasets.readers import birds\nimport torch", set()),
    ],
)
def test_only_modules_that_a_cell_asks_for_count_directly_or_through_others(
    package, cell, expected
):
    package(FILES)
    assert modules_behind([cell]) == expected


@pytest.mark.parametrize(
    "cell",
    ["import dmlkit.losses as L", "from dmlkit import losses", "from dmlkit.losses import *", "%f"],
)
def test_where_any_name_may_be_taken_all_count(package, cell):
    package(FILES)
    found = modules_behind([cell])
    assert {*LOSSES, "dmlkit.losses.one", "dmlkit.losses.two", "dmlkit.miners"} <= found
    assert not {"dmlkit.plots", "dmlkit.datasets.readers.birds"} & found


@pytest.mark.parametrize(
    ("file", "text", "is_stale"),
    [
        ("losses/one.py", "changed = True", True),
        ("distances.py", "changed = True", True),
        ("__init__.py", "torch.set_default_dtype(torch.float64)", True),
        ("losses/__init__.py", "LOSSES += 1", True),
        ("losses/two.py", "changed = True", False),
        ("miners.py", "changed = True", False),
        ("plots.py", "changed = True", False),
        ("losses/__init__.py", "from dmlkit.losses.three import Three as Three", False),
    ],
)
def test_an_edit_changes_the_digest_of_what_it_can_change(package, file, text, is_stale):
    cells = ["from dmlkit.losses import One"]
    package(FILES)
    before = fingerprint._digest(cells)
    package({file: f"{FILES[file]}{text}\n"})
    assert (fingerprint._digest(cells) != before) == is_stale


def test_docstrings_do_not_count_and_other_strings_do(package):
    cells, code = ["import dmlkit.distances"], 'def f():\n    """{}"""\n    return """{}"""\n'
    digests = []
    for texts in (("One.", "a"), ("Two,\n    lines.", "a"), ("One.", "b")):
        package(FILES | {"distances.py": '"""Module."""\n' + code.format(*texts)})
        digests.append(fingerprint._digest(cells))
    assert digests[0] == digests[1] != digests[2]


def test_importing_another_figure_changes_nothing_and_another_loss_does(package):
    package(FILES)
    cell = "from dmlkit.plots import (\n    show,\n)\nfrom dmlkit.losses import One"
    before = fingerprint._digest([cell])
    assert fingerprint._digest([cell.replace("show", "show,\n    draw")]) == before
    assert fingerprint._digest([cell.replace("One", "One, Two")]) != before
