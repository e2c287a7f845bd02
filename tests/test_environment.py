"""The environment files agree with each other and with what the code imports."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
PINS = dict(line.split("==") for line in CONSTRAINTS)
HEART = {
    "torch",
    "torchvision",
    "jupyterlab",
    "jupytext",
    "papermill",
    "faiss-cpu",
    "seaborn",
    "umap-learn",
}


def requirements(*extras):
    """The project's own requirements, with those of the extras named, by canonical name."""
    lines = PROJECT["dependencies"] + sum(
        (PROJECT["optional-dependencies"][extra] for extra in extras), []
    )
    found = {
        canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)
    }
    found.pop("dmlkit", None)
    return found


def environment():
    """The Python version, pip options and pins of environment.yml."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(e.removeprefix("python=") for e in entries if str(e).startswith("python="))
    lines = next(e["pip"] for e in entries if isinstance(e, dict))
    options = [line for line in lines if line.startswith("-")]
    return python, options, dict(line.split("==") for line in lines if line not in options)


def test_constraints_are_public_pins_without_addresses():
    odd = [
        c for c in CONSTRAINTS if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*", c)
    ]
    assert odd == []
    assert sorted(CONSTRAINTS) == CONSTRAINTS
    assert len(PINS) == len(CONSTRAINTS), "a package is pinned twice"


def test_constraints_cover_everything_that_is_installed():
    todo, seen, unpinned = list(requirements("test", "site").values()), set(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in PINS:
            unpinned.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needed = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # an extra's package that this environment does without
            todo += [r for r in map(Requirement, needed) if applies(r, extra)]
    assert unpinned == set()


def applies(requirement, extra):
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@pytest.mark.parametrize("name", requirements("test", "site"))
def test_ranges_admit_the_pins(name):
    requirement = requirements("test", "site")[name]
    assert requirement.specifier.contains(PINS[name]), f"{requirement} refuses {PINS[name]}"


def test_environment_yml_installs_the_project_with_the_pins():
    python, options, pins = environment()
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert options == ["-c constraints.txt", "-e .[test]"]
    assert set(pins) == HEART
    assert pins == {name: PINS[name] for name in HEART}


def test_environment_yml_gives_each_pin_a_reason():
    pins = [line for line in (ROOT / "environment.yml").read_text().splitlines() if "==" in line]
    assert [pin for pin in pins if not re.search(r" # \w+", pin)] == []


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def imported_packages(path):
    """Return the names of other people's packages that a file imports."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {name.partition(".")[0] for name in names} - {"dmlkit", *sys.stdlib_module_names}


def test_every_import_is_declared():
    providers = importlib.metadata.packages_distributions()
    undeclared = []
    for path in sorted([*ROOT.glob("dmlkit/**/*.py"), *ROOT.glob("book/**/*.py")]):
        extras = ["site"] if path == ROOT / "dmlkit" / "site.py" else []
        for package in imported_packages(path):
            distributions = set(map(canonicalize_name, providers.get(package, [package])))
            if not requirements(*extras).keys() & distributions:
                undeclared.append(f"{path.relative_to(ROOT)}: {package}")
    assert undeclared == []
