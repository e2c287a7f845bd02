"""Check the files around the rows of a chapter: names, pictures, paths, tables and claims."""

import json
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmlkit.datasets import PICTURES_MAY_BE_SHOWN
from dmlkit.intervals import Scores
from dmlkit.paths import PROJECT_ROOT
from dmlkit.results import STEPS_OF_ONE, table_of_runs
from dmlkit.tables import metric_title, summarise

OF_A_CHAPTER = re.compile(
    r"runs/[^/]+\.(json|npz)|(parameters|searches)/[^/]+\.json|tables/[^/]+\.(csv|md)"
    r"|figures/[^/]+\.(png|jpg)|(runs|claims)\.csv|chapter\.ipynb"
)
KEPT_LOCAL = ("embeddings", "logs", "pictures", "stages", ".ipynb_checkpoints")  # git ignores them
# An absolute path, or one below a home; not a part of an address, a formula or a relative path.
OF_A_MACHINE = re.compile(r"(?<![\w.:/<~$)\]}])/(?:[\w.+-]+/)+[\w.+-]*|\b[A-Z]:\\+\w+|~/\w+")
NUMBER = re.compile(r"-?\d+\.?\d*")
AGAIN = "the same `dmlkit run` makes it again from the rows"


def check_files(folder: Path, dataset: str) -> Iterator[str]:
    """Yield what must not be passed on: foreign files, pictures, and paths of somebody's machine.

    Args:
        folder: the results of a chapter.
        dataset: the data set of its rows.
    """
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    may_show = dataset in PICTURES_MAY_BE_SHOWN
    for name, path in sorted(files.items()):
        if path.is_dir() or name.split("/")[0] in KEPT_LOCAL:
            continue
        if not OF_A_CHAPTER.fullmatch(name):
            yield f"{name}: no file of a chapter's results; delete it"
        elif path.suffix == ".jpg" and not may_show:
            yield f"{name}: {dataset} may not be passed on; delete the picture"
        elif path.suffix in (".csv", ".md"):
            yield from (f"{name}: {what}" for what in _of_text(path))
        elif path.suffix in (".json", ".ipynb"):
            yield from (f"{name}: {what}" for what in _of_json(path, may_show=may_show))


def _of_text(path: Path) -> Iterator[str]:
    """Yield a path in a table."""
    try:
        found = OF_A_MACHINE.search(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"cannot be read ({error}); {AGAIN}"
        return
    if found:
        yield f"names {found[0]}; {AGAIN}"


def _of_json(path: Path, *, may_show: bool) -> Iterator[str]:
    """Yield pictures and paths in a notebook, and paths in another JSON file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        yield "cannot be read; send it again"
        return
    for text in _texts(content):
        if found := OF_A_MACHINE.search(text):
            yield (
                f"names {found[0]}; link data and weights into data/ of the project, give their "
                "paths from there and run again"
            )
            break
    try:
        shown = [kind for cell in content.get("cells", []) for kind in _pictures(cell)]
    except (AttributeError, TypeError, KeyError):
        yield "is no notebook, nor what a run writes; send it again"
        return
    if shown and not may_show:
        yield f"{len(shown)} pictures of data that may not be passed on; run it by `dmlkit run`"


def _texts(content: Any) -> Iterator[str]:
    """Yield all texts of a JSON file, images aside."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        # A notebook may keep the lines of a text apart.
        is_text = content and all(isinstance(part, str) for part in content)
        yield from ["".join(content)] if is_text else (t for part in content for t in _texts(part))
    elif isinstance(content, dict):
        parts = (part for key, part in content.items() if not key.startswith("image/"))
        yield from (text for part in parts for text in _texts(part))


def _pictures(cell: dict[str, Any]) -> list[str]:
    """Return the kinds of the images in a cell that may be photographs; plots are PNG."""
    kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
    kinds = [kind for kind in kinds if kind.startswith("image/")]
    if "pictures" not in cell["metadata"].get("tags", []):
        kinds = [kind for kind in kinds if kind != "image/png"]
    attached = [kind for files in cell.get("attachments", {}).values() for kind in files]
    return kinds + attached + ["data:image" for text in _texts(cell) if "data:image/" in text]


def check_tables(
    folder: Path, rows: pd.DataFrame, by_class: dict[str, Scores], *, is_whole: bool = True
) -> Iterator[str]:
    """Yield which of ``runs.csv``, the main table and the claims are not what the rows give.

    Args:
        folder: the results of a chapter.
        rows: its rows, as ``dmlkit.results.read_row`` returns them, sorted as in ``runs.csv``.
        by_class: results of each run_id, as ``dmlkit.results.read_scores`` returns them.
        is_whole: whether the executed notebook must be there.
    """
    for name in ("runs.csv", "chapter.ipynb") if is_whole else ("runs.csv",):
        if not (folder / name).exists():
            yield f"{name}: missing; {AGAIN}"
    checks = {"runs.csv": _runs, "tables/main.csv": _main_table, "claims.csv": _claims}
    for name, check in checks.items():
        try:
            if (folder / name).exists():
                yield from check(folder / name, rows, by_class)
        except Exception as error:  # pandas lets all kinds through where a table is none of ours
            yield f"{name}: cannot be read ({error}); {AGAIN}"


def _runs(path: Path, rows: pd.DataFrame, by_class: dict[str, Scores]) -> Iterator[str]:
    """Yield rows that ``runs.csv`` lacks, and whether it says other things than the rows."""
    listed = pd.read_csv(path)
    if extra := sorted(set(rows["run_id"]) - set(listed["run_id"])):
        yield f"runs/{extra[0]}.json: not in runs.csv, nor {len(extra) - 1} others; delete them"
    written = table_of_runs(rows[rows["run_id"].isin(listed["run_id"])])
    written = pd.read_csv(StringIO(written.to_csv(index=False)))
    is_same = {*listed} == {*written} and listed.equals(written[listed.columns])
    if not is_same:
        yield f"runs.csv: not what runs/ holds; {AGAIN}"


def _main_table(path: Path, rows: pd.DataFrame, by_class: dict[str, Scores]) -> Iterator[str]:
    """Yield whether the main table is not what the rows give."""
    table = pd.read_csv(path, index_col=0, dtype=str)
    if not set(table.index) <= set(rows["method"]) or _differs(table, rows, by_class):
        yield f"tables/main.csv: not what the rows give; {AGAIN}"


def _differs(table: pd.DataFrame, rows: pd.DataFrame, by_class: dict[str, Scores]) -> bool:
    """Whether recalls or intervals of a table differ from those of the rows by over 0.1 points."""
    recalls = (name.removeprefix("metric_") for name in rows if "recall_at" in name)
    means = tuple(m for m in recalls if m != "recall_at_1" and metric_title(m) in table)
    again = summarise(rows, by_class, [*table.index], means=means).astype(str)
    columns = again.columns.intersection(table.columns)
    ours, theirs = (
        [float(n) for n in NUMBER.findall(" ".join(t[columns].to_numpy().ravel()))]
        for t in (again, table)
    )
    # By class, results are kept rounded, so that a last digit may be rounded the other way.
    return len(ours) != len(theirs) or not np.allclose(ours, theirs, rtol=0, atol=0.11)


def _claims(path: Path, rows: pd.DataFrame, by_class: dict[str, Scores]) -> Iterator[str]:
    """Yield judged claims that the book does not list or whose difference the rows do not have."""
    listed = pd.read_csv(PROJECT_ROOT / "book" / "claims.csv").set_index("claim")
    values = rows.set_index(["method", "seed"])
    for claim in pd.read_csv(path).itertuples():
        if claim.claim not in listed.index:
            yield f"claims.csv: book/claims.csv has no {claim.claim}; it is committed before runs"
            continue
        metric = values[f"metric_{claim.metric}"]
        first, second = (listed.loc[claim.claim, role] for role in ("first", "second"))
        if not {first, second} <= set(rows["method"]):
            yield f"claims.csv: {claim.claim} is about methods without rows; {AGAIN}"
            continue
        difference = (metric[first] - metric[second]).dropna()
        is_close = abs(difference.mean() - claim.difference) < 2 / STEPS_OF_ONE  # of two methods
        if not is_close or len(difference) != claim.n:
            yield f"claims.csv: {claim.claim} is not what the rows give; {AGAIN}"
