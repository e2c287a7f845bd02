"""The chapters as files: their parameters and the paired notebooks.

``book/NN_name.py`` (py:percent) is the source of a chapter. The ``.ipynb`` beside it is built from
it, one way, without outputs and with stable cell ids, so it changes only where the text does.
"""

import ast
import contextlib
import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml

from dmlkit.paths import PROJECT_ROOT

BOOK = PROJECT_ROOT / "book"
MAY_BE_EMPTY = ("SWEEPS", "ARMS", "REFERENCES")  # parameters: nothing more than METHODS is run
# Parameters of which 0 is a value like any other, though their default is not 0: weights that leave
# a term out, margins and a floor of cosines, and a chance, a memory or a warm-up that is none.
MAY_BE_ZERO = {
    *("WEIGHT_DECAY", "TASK_WEIGHT", "ORDER_WEIGHT", "FLOOR_WEIGHT", "ORDER_MARGIN", "FLOOR"),
    *("MINED_WEIGHT", "BASIS_WEIGHT", "VARIANCE_WEIGHT", "DISTRIBUTION_MARGIN"),
    *("TASK_CHANCE", "MOMENTUM", "WARM_UP_STEPS"),
}


def chapter_names() -> list[str]:
    """Return the names of all chapters, in reading order."""
    return sorted(path.stem for path in BOOK.glob("[0-9][0-9]_*.py"))


def edited_chapters() -> list[str]:
    """Return the names of chapters that are not as committed; none where git cannot say."""
    git = ["git", "-C", str(BOOK), "status", "--porcelain", "--untracked-files=no", "--", "*.py"]
    try:
        said = subprocess.run(git, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return []
    return sorted(Path(line[3:]).stem for line in said.splitlines())


def chapter_source(name: str) -> Path:
    """Return the source of the chapter called ``name``.

    Raises:
        ValueError: there is no such chapter.
    """
    if name not in chapter_names():
        raise ValueError(f"there is no chapter {name!r}; choose from {', '.join(chapter_names())}")
    return BOOK / f"{name}.py"


def profile_names() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.stem for path in (BOOK / "profiles").glob("*.yaml"))


def profile_files(profile: str, chapter: str) -> list[Path]:
    """Return the parameter files of a chapter under a profile, the later overriding the earlier.

    Raises:
        ValueError: there is no such profile.
    """
    if profile not in profile_names():
        raise ValueError(
            f"there is no profile {profile!r}; choose from {', '.join(profile_names())}"
        )
    files = [BOOK / "profiles" / f"{profile}.yaml", BOOK / "profiles" / profile / f"{chapter}.yaml"]
    return [path for path in files if path.exists()]


def parameter_defaults(chapter: str) -> dict[str, Any]:
    """Return name and default of every assignment in the parameters cell of ``chapter``."""
    notebook = read_notebook(chapter_source(chapter))
    source = next(c.source for c in notebook.cells if "parameters" in _tags(c))
    return {
        (node.target if isinstance(node, ast.AnnAssign) else node.targets[0]).id: ast.literal_eval(
            node.value
        )
        for node in ast.parse(source).body
    }


def all_parameters(chapter: str, injected: dict[str, Any]) -> dict[str, Any]:
    """Return every parameter of ``chapter``: its defaults, and ``injected`` where it says so."""
    return parameter_defaults(chapter) | injected


def chapter_parameters(chapter: str, profile: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return what to inject into ``chapter``: its profile's values, then ``overrides``.

    Raises:
        ValueError: a name that the chapter has no parameter of, a value of another type than its
            default, a number below 0, or 0 where that is no value.
    """
    defaults = parameter_defaults(chapter)
    values: dict[str, Any] = {}
    for path in profile_files(profile, chapter):
        given = _read_profile(path)
        if path.stem == profile and not has_runs(chapter):
            # What a profile says of training concerns only the chapters that train.
            given = {name: value for name, value in given.items() if name in defaults}
        values |= checked_parameters(given, defaults, path.name)
    values |= checked_parameters(overrides, defaults, chapter)
    every = defaults | values
    has_both = {"SEEDS", "PICTURED_SEED"} <= every.keys()
    if has_both and every["PICTURED_SEED"] not in every["SEEDS"]:
        values["PICTURED_SEED"] = every["SEEDS"][0]
    return values


def _read_profile(path: Path) -> dict[str, Any]:
    """Return name and value of the parameters in a file of a profile.

    Raises:
        ValueError: it is no YAML, or no list of parameters with values.
    """
    text = path.read_bytes()
    try:
        given = yaml.safe_load(text.decode()) or {}
        if not isinstance(given, dict):
            raise TypeError(f"a {type(given).__name__} has no names")
    except Exception as error:  # PyYAML lets all kinds through, as of a 31st of February
        said = " ".join(str(error).split())
        raise ValueError(
            f"{path.name} cannot be read ({said}); give each parameter on a line, like STEPS: 300"
        ) from error
    return given


def checked_parameters(
    values: dict[str, Any], defaults: dict[str, Any], where: str
) -> dict[str, Any]:
    """Return ``values`` with their types checked against ``defaults``."""
    checked = {}
    for name, value in values.items():
        if name not in defaults:
            raise ValueError(
                f"{where}: there is no parameter {name}; choose from {', '.join(defaults)}"
            )
        default = defaults[name]
        kind = type(default)
        # YAML 1.1 reads 1e-3 as text and 1 as an integer where a fraction is meant.
        if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                value = float(value)
        if type(value) is not kind:
            raise ValueError(
                f"{where}: {name}={value!r} should be of type {kind.__name__}, "
                f"like its default {default!r}"
            )
        may_be_zero = default == 0 or name in MAY_BE_ZERO
        if kind in (int, float) and not (value > 0 or (value == 0 and may_be_zero)):  # nor NaN
            least = "0 or more" if may_be_zero else "positive"
            raise ValueError(f"{where}: {name}={value!r} should be {least}, e.g. {default!r}")
        if kind is list:
            value = _checked_list(name, value, default, where)
        checked[name] = value
    return checked


def _checked_list(name: str, values: list[Any], default: list[Any], where: str) -> list[Any]:
    """Return the list ``values`` with their types checked against ``default``."""
    kinds = {type(value) for value in default}
    if kinds == {float}:
        with contextlib.suppress(OverflowError):
            values = [float(value) if type(value) is int else value for value in values]
    if {type(value) for value in values} - kinds:
        raise ValueError(f"{where}: {name}={values!r} should be a list like {default!r}")
    if not values and name not in MAY_BE_EMPTY:
        raise ValueError(f"{where}: {name} is an empty list; give at least one, as in {default!r}")
    return values


def read_notebook(source: Path) -> nbformat.NotebookNode:
    """Return the notebook of a py:percent source, with cell ids that depend on content only."""
    notebook = jupytext.read(source, fmt="py:percent")
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def has_runs(chapter: str) -> bool:
    """Whether a chapter trains: it has a cell tagged ``runs``."""
    return any("runs" in _tags(cell) for cell in read_notebook(chapter_source(chapter)).cells)


def chapters_read(parameters: dict[str, Any]) -> list[str]:
    """Return the chapters whose rows a chapter reads: it is run after these."""
    return parameters.get("CHAPTERS", [])


def up_to_runs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return ``notebook`` cut behind its cell tagged ``runs``: it fills rows and draws nothing."""
    last = next(i for i, cell in enumerate(notebook.cells) if "runs" in _tags(cell))
    cut = nbformat.v4.new_notebook(metadata=notebook.metadata, cells=notebook.cells[: last + 1])
    cut.nbformat_minor = notebook.nbformat_minor
    return cut


def sync_notebooks(*, check: bool = False) -> list[Path]:
    """Build the notebook beside each chapter, and return those that differed.

    Args:
        check: only look, write nothing.

    Raises:
        ValueError: a notebook was edited without its source, and the edit would be lost.
    """
    changed = []
    for name in chapter_names():
        source = chapter_source(name)
        text = jupytext.writes(read_notebook(source), fmt="ipynb") + "\n"
        paired = source.with_suffix(".ipynb")
        if not paired.exists() or paired.read_text() != text:
            changed.append(paired)
            if not check:
                _refuse_to_lose_edits(source, paired)
                paired.write_text(text)
                # JupyterLab takes a notebook that is newer than its source for an edited one.
                os.utime(paired, (source.stat().st_atime, source.stat().st_mtime))
    return changed


def _refuse_to_lose_edits(source: Path, paired: Path) -> None:
    """Raise if ``paired`` is newer than ``source`` and holds other text."""
    if not paired.exists() or paired.stat().st_mtime <= source.stat().st_mtime + 1:
        return
    edited, built = nbformat.read(paired, as_version=4), read_notebook(source)
    if [cell.source for cell in edited.cells] != [cell.source for cell in built.cells]:
        raise ValueError(
            f"{paired.name} was edited after {source.name}; open and save it in JupyterLab to keep "
            f"the edit, or `touch {source.name}` to give it up"
        )


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])
