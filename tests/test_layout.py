"""The folder layout is the architecture; these tests keep it true."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dmlkit"

# A module may import only from layers below its own; modules of one folder may import each other.
LAYERS = [
    {"paths", "processes", "distances"},
    {"seeding"},
    {"miners"},
    {"datasets", "transforms", "samplers", "models", "losses", "metrics"},
    {"batches"},
    {"training", "evaluation", "features", "ranked_views", "search", "saving"},
    {"references", "pseudo_labels", "swav"},
    {"slade"},
    {"chapters", "intervals", "provenance"},
    {"fingerprint", "workers", "torchrun"},
    {"plots", "results", "gallery"},
    {"claims", "simulation"},
    {"tables", "readme"},
    {"index", "published", "checking_files"},
    {"running", "checking_rows"},
    {"site"},
    {"cli"},
]
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(module: str) -> str:
    """Return the file or folder right below dmlkit that a dotted module name belongs to."""
    return module.removeprefix("dmlkit.").split(".")[0]


def layer_of(part: str) -> int:
    """Return the index in LAYERS of a part of the package."""
    return next(i for i, names in enumerate(LAYERS) if part in names)


def imports_of(path: Path) -> set[str]:
    """Return the absolute names of all modules a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return imported | {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down_the_layers(path):
    own = part_of(name_of(path))
    for module in imports_of(path):
        if module.startswith("dmlkit.") and part_of(module) != own:
            assert layer_of(part_of(module)) < layer_of(own), f"{path} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_in_the_package_imports_the_book(path):
    assert not any(module.split(".")[0] == "book" for module in imports_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_its_test(path):
    parts = path.relative_to(PACKAGE).parts
    if path.name == "__init__.py":
        expected = ROOT / "tests" / Path(*parts[:-1])
    else:
        expected = ROOT / "tests" / Path(*parts[:-1]) / f"test_{parts[-1]}"
    assert expected.exists(), f"{expected.relative_to(ROOT)} is missing"


def test_every_test_has_its_module():
    elsewhere = {"test_layout", "test_environment", "test_readme_file", "test_load"}
    elsewhere |= {"test_every_loss", "test_contributing", "test_running_chapters"}
    for test in (ROOT / "tests").rglob("test_*.py"):
        if "benchmarks" in test.parts or "drills" in test.parts or test.stem in elsewhere:
            continue
        folder = test.parent.relative_to(ROOT / "tests")
        folder = ROOT / folder if folder.parts == ("book",) else PACKAGE / folder
        assert (folder / test.name.removeprefix("test_")).exists(), f"{test.name} has no module"


def test_the_core_needs_neither_notebook_tools_nor_plots():
    # It trains on machines that have PyTorch and little else.
    heavy = {"faiss", "umap", "jupytext", "papermill", "nbformat", "nbclient", "seaborn"}
    for path in MODULES:
        if layer_of(part_of(name_of(path))) < layer_of("chapters"):
            assert not {name.split(".")[0] for name in imports_of(path)} & heavy, path
