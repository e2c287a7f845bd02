"""Check a folder of results without its data: rows that somebody sends, or one's own.

What can be checked is whether the files agree with one another, with the book's list of claims and
with rows of the same data set in ``results/``. Whether the runs were made cannot be seen from them.
"""

import ast
import hashlib
import json
import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dmlkit.chapters import chapter_names, chapter_source, read_notebook
from dmlkit.checking_files import check_files, check_tables
from dmlkit.datasets import DATASETS, FAMILIES
from dmlkit.fingerprint import code_fingerprint
from dmlkit.intervals import Scores
from dmlkit.paths import PROJECT_ROOT
from dmlkit.provenance import commit
from dmlkit.results import STEPS_OF_ONE, file_digest, read_row, read_scores, trials_of
from dmlkit.search import best_of

_digest_of = cache(file_digest)
COUNT, SIGNED = "metric_pseudo_clusters", re.compile(r"metric_(pseudo_ami|ami|order|similar)")


def check_rows(folder: Path) -> tuple[list[str], list[str]]:
    """Return what is wrong with a folder of results, and remarks on what is old or not known.

    Args:
        folder: that of a chapter, with ``runs/``, or of a profile, with those of its chapters.

    Returns:
        A line per problem, which names the file and the remedy; and a line per remark, of which
        the last counts the rows.

    Raises:
        FileNotFoundError: no results are there.
    """
    if not any(folder.glob("runs")) and not any(folder.glob("*/runs")):
        raise FileNotFoundError(f"{folder} holds no results: there is no runs/ in it or below it")
    places = ("runs", "*/runs", "*/*/runs")  # the last: of the official split and the like
    runs = [path for place in places for path in sorted(folder.glob(place)) if path.is_dir()]
    problems, remarks, total = [], [], 0
    for chapter in (path.parent for path in runs):
        # Rows alone, as those of the official split, which chapter 7 reads, need no notebook.
        found, said, count = _check_chapter(chapter, is_whole=(chapter / "tables").exists())
        name = chapter.relative_to(folder.parent if chapter == folder else folder).as_posix()
        problems += [f"{name}/{line}" for line in found]
        remarks += [f"{name}: {line}" for line in said]
        total += count
    chapters = "1 chapter" if len(runs) == 1 else f"{len(runs)} chapters"
    return problems, [*remarks, f"{total:,} rows of {chapters}, {len(problems)} problems"]


def _check_chapter(folder: Path, *, is_whole: bool) -> tuple[list[str], list[str], int]:
    """Return problems, remarks and the number of rows."""
    records, by_class, problems, remarks = [], {}, [], []
    for path in sorted((folder / "runs").glob("*.json")):
        try:
            stored = json.loads(path.read_text())
            row = read_row(path) | {"own": stored["params"], "parameters": stored["parameters"]}
            _check_types(row)
            by_class[path.stem] = read_scores(path.with_suffix(".npz"))
            problems += [f"runs/{path.name}: {what}" for what in _row(row, by_class[path.stem])]
            records.append(row)
        except Exception as error:  # NumPy and zipfile let all kinds through for a damaged file
            what = str(error).replace(f"{folder}/", "")
            problems.append(
                f"runs/{path.name}: cannot be read ({what}); send it and its .npz again"
            )
    if len(records) < max(1, len([*(folder / "runs").glob("*.json")])):
        return problems or ["runs: there are no rows; send the whole folder"], [], len(records)
    rows = pd.DataFrame(records).sort_values(["method", "seed"], ignore_index=True)
    for check in (_replicates, _run_ids, _code_and_data):
        problems += check(folder, rows, remarks)
    problems += check_files(folder, rows["dataset"].iloc[0])
    rows_only = rows.drop(columns=["own", "parameters"])
    problems += check_tables(folder, rows_only, by_class, is_whole=is_whole)
    return problems, remarks, len(rows)


def _check_types(row: dict[str, Any]) -> None:
    """Raise if a part of a row that other checks rely on is missing or of another type."""
    texts = ("method", "run_id", "code", "commit", "dataset", "data_fingerprint", "parameters")
    kinds = dict.fromkeys(texts, str) | {"seed": int, "own": dict, "params": dict}
    for name, kind in kinds.items():
        if not isinstance(row[name], kind):
            raise TypeError(f"{name} = {row[name]!r} should be of type {kind.__name__}")


def _row(row: dict[str, Any], scores: Scores) -> Iterator[str]:
    """Yield what is wrong within one row."""
    for name, value in row.items():
        low, high = -1 if SIGNED.match(name) else 0, math.inf if name.startswith(COUNT) else 1
        if name.startswith("metric_") and not low - 1e-6 <= value <= high + 1e-6:  # nor is NaN
            yield f"{name} = {value} is not between {low} and {high}; make the run again"
        if name.removeprefix("metric_") in scores and name.startswith("metric_"):
            mean = np.average(scores[name.removeprefix("metric_")], weights=scores["queries"])
            if not abs(mean - value) < 1 / STEPS_OF_ONE:
                yield f"{name} = {value:.6f} but {mean:.6f} in its .npz; send both again"
    if scores["queries"].sum() != row["num_queries"]:
        yield "num_queries is not that of its .npz; send both again"
    if row["code"].startswith("edited"):
        yield "its chapter was edited while it ran; restart the kernel and make the run again"


def _replicates(folder: Path, rows: pd.DataFrame, remarks: list[str]) -> Iterator[str]:
    """Yield what differs between replicates that should not."""
    if rows["parameters"].nunique() > 1:
        yield "parameters: rows have several of these files; make all runs with the same parameters"
    seeds = set(rows["seed"])
    for method, of_method in rows.groupby("method"):
        if missing := seeds - set(of_method["seed"]):
            yield f"runs: {method} lacks seed {min(missing)}; run it, or leave that seed out"
        if of_method["seed"].duplicated().any():
            yield f"runs: {method} has two rows of a seed; delete the one that runs.csv leaves out"
        fixed = set()
        for row in of_method.itertuples():
            try:
                chosen = _chosen(folder, method, row.seed)
            except ValueError as error:
                yield str(error)
                chosen = {}
            if any(row.params.get(name, value) != value for name, value in chosen.items()):
                yield f"runs/{row.run_id}.json: not what its search chose; make it again"
            # What a search chose differs, and numbers of classes do in random splits.
            free = {*chosen, "CHOSEN_STEP", "num_sampled"}
            others = {name: value for name, value in row.params.items() if name not in free}
            fixed.add(json.dumps(others, sort_keys=True))
        if len(fixed) > 1:
            yield f"runs: replicates of {method} differ in their settings; make them again"


def _chosen(folder: Path, method: str, seed: int) -> dict[str, Any]:
    """Return the settings that a search found best for a method, where it has one by its name.

    Raises:
        ValueError: the file of the search is damaged.
    """
    loss = re.sub("_(concatenated|binary)$", "", method)
    for path in (folder / "searches").glob(f"{loss}-seed{seed}-*.json"):
        try:
            return dict(best_of(trials_of(json.loads(path.read_text()))).settings)
        except Exception as error:  # of what no search writes
            raise ValueError(
                f"searches/{path.name}: cannot be read ({error}); send it again"
            ) from error
    return {}


def _searched(folder: Path, method: str, seed: int) -> frozenset[str]:
    """Return the names of what was searched for a method; none where that cannot be read."""
    try:
        return frozenset(_chosen(folder, method, seed))
    except ValueError:  # which was said already
        return frozenset()


def _run_ids(folder: Path, rows: pd.DataFrame, remarks: list[str]) -> Iterator[str]:
    """Yield rows whose run_id is not the digest of what determines them."""
    shared = {
        name: json.loads((folder / "parameters" / f"{name}.json").read_text())
        for name in rows["parameters"].unique()
    }
    guesses, unknown = _settings_named(folder.name, rows["params"].iloc[0]), 0
    for method, of_method in rows.groupby("method"):
        best, is_right = guesses[0], np.zeros(len(of_method), dtype=bool)
        of_search = [_searched(folder, method, seed) for seed in of_method["seed"]]
        for names in guesses:
            again = [
                _run_id(row, shared[row.parameters], names | searched)
                for row, searched in zip(of_method.itertuples(), of_search, strict=True)
            ]
            if (found := of_method["run_id"].to_numpy() == again).sum() > is_right.sum():
                best, is_right = names, found
            if is_right.all():
                break
        guesses.sort(key=lambda names: names != best)  # what one method has, the next may have too
        unknown += 0 if is_right.any() else len(of_method)
        for run_id in of_method["run_id"][~is_right & is_right.any()]:
            yield f"runs/{run_id}.json: its settings are not those it is named after; make it again"
    if unknown:
        remarks.append(f"{unknown} run_ids could not be computed again (are the weights in data/?)")


def _run_id(row: Any, shared: dict[str, Any], names: set[str]) -> str:
    """Return the run_id of a row with those of the chapter's parameters among its settings."""
    settings = {name: shared[name] for name in names & shared.keys()} | row.own
    weights = _digest_of(str((shared | settings).get("WEIGHTS", "none")))
    weights += _digest_of(str(shared.get("SWAV_CHECKPOINT", "none")))
    whole = [row.method, row.seed, row.fold, settings, row.data_fingerprint, weights, shared]
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]
    return f"{row.method}-seed{row.seed}-{digest}"


def _settings_named(chapter: str, params: dict[str, Any]) -> list[frozenset[str]]:
    """Return guesses at which of the chapter's parameters its runs have among their settings.

    A row does not say it of those that the run left as they are, but its run_id depends on it. The
    chapter has them as keys of a dict, to which it may add one.
    """
    dicts: list[ast.Dict] = []
    if chapter in chapter_names():
        cells = read_notebook(chapter_source(chapter)).cells
        trees = [ast.parse(cell.source) for cell in cells if cell.cell_type == "code"]
        dicts = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    keys = [{getattr(key, "value", None) for key in node.keys} for node in dicts]
    groups = {frozenset(some & params.keys()) for some in keys} | {frozenset()}
    more = {group | {name} for group in groups for name in params if len(group) > 1}
    return sorted(groups, key=len) + sorted(more - groups, key=len)


def _code_and_data(folder: Path, rows: pd.DataFrame, remarks: list[str]) -> Iterator[str]:
    """Yield rows of other code than they say, and of data that differ from those known."""
    present = code_fingerprint(folder.name) if folder.name in chapter_names() else "none"
    if rows["code"].nunique() > 1:
        yield "runs: rows of several versions of the code; the same command makes the older anew"
    for (code, made_by), some in rows[rows["code"] != present].groupby(["code", "commit"]):
        if made_by == commit():
            yield f"runs: {len(some)} rows are not by the code of commit {made_by}; run it again"
        else:
            remarks.append(f"{len(some)} rows by earlier code {code}, commit {made_by}")
    dataset, found = rows["dataset"].iloc[0], set(rows["data_fingerprint"])
    if dataset not in DATASETS:
        yield f"runs: there is no data set {dataset}; add its reader, see CONTRIBUTING.md"
    if any(name.startswith("generated") for name in found):
        yield "runs: made on random images in the layout of the data set; run them on the data"
    if dataset in FAMILIES:
        return
    if len(found) > 1:
        yield "runs: rows of different data; run `dmlkit data` and make all of them again"
    known = _fingerprints(rows["params"].iloc[0], folder)
    if not known:
        remarks.append(f"the first rows of {dataset}, whose fingerprint is {min(found)[:16]}")
    elif found - known:
        yield f"runs: other images than those of {dataset} in results/; run `dmlkit data {dataset}`"


def _fingerprints(params: dict[str, Any], own: Path) -> set[str]:
    """Return the data fingerprints of other rows on the same data set, pool and part of it."""
    found = set()
    for path in PROJECT_ROOT.glob("results/*/*/parameters/*.json"):
        theirs = json.loads(path.read_text())
        about = ("DATASET", "POOL", "MAX_CLASSES", "MAX_IMAGES_PER_CLASS")
        if path.parents[1] != own and all(theirs.get(n) == params.get(n) for n in about):
            runs = [read_row(p) for p in path.parents[1].glob("runs/*.json")]
            found |= {run["data_fingerprint"] for run in runs}
    return found
