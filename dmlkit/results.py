"""What a chapter writes: one JSON file per run, tables, figures and claims.

``<RESULTS_DIR>/<chapter>/`` holds ``runs/<run_id>.json`` (the row and its learning curve) with
``<run_id>.npz`` (results by test class, which ``tested-*.npz`` lists), ``parameters/`` with what
many rows share (parameters of the chapter; machine, code and versions; names of metrics),
``runs.csv`` with what of the rows a reader compares, ``searches/<run_id>.json`` (what a search
tried and how it did on held-out training classes), ``tables/``, ``figures/``, ``claims.csv`` and
the executed ``chapter.ipynb``; ``embeddings/``, ``pictures/`` and ``stages/`` (models that several
runs share) stay local.
"""

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

from dmlkit.chapters import checked_parameters, parameter_defaults
from dmlkit.evaluation import Evaluation
from dmlkit.fingerprint import code_fingerprint
from dmlkit.intervals import ABOUT_LINES, Scores, class_means
from dmlkit.paths import check_writable, resolve, write_atomically
from dmlkit.processes import of_first, rank, wait_for_all, world_size
from dmlkit.provenance import commit, peak_mib, versions
from dmlkit.search import Trial
from dmlkit.training import Fit

# Parameters that say which runs to make or where to put them, not what a run does.
NOT_IN_RUN = {
    *("SEEDS", "PICTURED_SEED", "METHODS", "REFERENCES"),
    *("RESUME", "RESULTS_DIR", "DATA_DIR", "POOL_ROOT", "DEVICE"),
    # Which points of a sweep are run, and what only cells after the runs read.
    *("SWEEPS", "TEMPERATURES", "DIMENSIONS", "IMAGES_PER_CLASS_TRIED", "CLASS_SHARES"),
    *("OTHER_TRUNKS", "STEP_CLASSES", "SEARCHED_ITEMS", "ARMS", "ABLATED"),
    *("STARTS", "JOINED", "CLUSTER_SHARES"),
}

# Of metrics and of scores in searches: as many as the float32 behind them has.
DIGITS = 7
# Of results by class, in [-1, 1]: whole numbers of 16 bits take two thirds of the space of float32.
STEPS_OF_ONE = 2**15 - 1

# What is the same in all rows of one sitting: consecutive in a row, and kept once.
CIRCUMSTANCES = ("device", "threads", "precision", "code", "commit", "versions", "data_fingerprint")

# What of a row is the same in all of them or no reader compares, and so stands in JSON alone.
NOT_IN_TABLE = ["chapter", "params", "versions", "data_fingerprint", "history"]


@dataclass(frozen=True)
class Run:
    """One training run: a method on one replicate.

    Args:
        run_id: file name of the row, unique for all that determines the run.
        method: name of the method, as in ``dmlkit.losses`` and the tables.
        seed: the replicate.
        fold: the part of a cross-validation, 0 without one.
        settings: what the run adds to the chapter's parameters, e.g. the loss's own.
        data_fingerprint: digest of the data set's content.
    """

    run_id: str
    method: str
    seed: int
    fold: int
    settings: dict[str, Any]
    data_fingerprint: str


class FailedRunsError(RuntimeError):
    """Some training runs failed, and the others went on."""


class ChapterResults:
    """The results folder of one chapter under one set of parameters.

    Args:
        chapter: name of the chapter, e.g. ``02_baseline_losses``.
        namespace: the notebook's ``globals()``; the chapter's parameters are taken from it.

    Raises:
        ValueError: a parameter is of another type than its default, or out of range.
        PermissionError: the folder cannot be written to.
    """

    def __init__(self, chapter: str, namespace: dict[str, Any]) -> None:
        self.chapter = chapter
        defaults = parameter_defaults(chapter)
        given = {name: namespace[name] for name in defaults}
        self.parameters = checked_parameters(given, defaults, chapter)
        self.settings = {k: v for k, v in self.parameters.items() if k not in NOT_IN_RUN}
        self.folder = resolve(self.parameters["RESULTS_DIR"]) / chapter
        self.search_seconds: dict[tuple[str, int], float] = {}  # by method and seed, once returned
        self._made: set[Path] = set()  # stages, by this process
        self._failures: list[str] = []  # of runs that were attempted
        self.stamp = ""  # what every table and figure of these rows has to say
        self.executed: list[str] | None = namespace.get("In")  # where this is a notebook's kernel
        self._found: tuple[int, str] | None = None  # by how many of these cells, the fingerprint
        self._digest_of = lru_cache(file_digest)
        check_writable(self.folder)

    def run(
        self, method: str, seed: int, data_fingerprint: str, *, fold: int = 0, **settings: Any
    ) -> Run:
        """Return the run of ``method`` on replicate ``seed`` under the chapter's parameters.

        Args:
            method: name of the method.
            seed: the replicate.
            data_fingerprint: digest of the data set's content.
            fold: the part of a cross-validation.
            settings: whatever else determines the run and is not a parameter of the chapter.

        Raises:
            ValueError: parameters were set after cells that had used their earlier values.
        """
        weights = self._digest_of(settings.get("WEIGHTS", self.parameters["WEIGHTS"]))
        weights += self._digest_of(self.parameters.get("SWAV_CHECKPOINT", "none"))
        identity = [method, seed, fold, settings, data_fingerprint, weights, self.settings]
        if self._code().startswith("edited"):
            identity.append("edited")  # never replaces a row of the chapter as it stands
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        run_id = f"{method}-seed{seed}-{digest}"
        return Run(run_id, method, seed, fold, settings, data_fingerprint)

    def _code(self) -> str:
        """Return the fingerprint, found once per cell, so that saving while one runs changes none.

        Where this kernel has executed other cells than the chapter's, that is told once.
        """
        if self.executed is None:
            return code_fingerprint(self.chapter, None)
        count = len(self.executed)
        if not self._found or count != self._found[0]:
            code = code_fingerprint(self.chapter, self.executed)
            was_edited = bool(self._found) and self._found[1].startswith("edited")
            if code.startswith("edited") and not was_edited:
                print(
                    "Cells were executed here that are not those of the chapter as saved: its runs "
                    "are made anew and kept apart. Restart the kernel to use the chapter's own."
                )
            self._found = (count, code)
        return self._found[1]

    def is_finished(self, run: Run) -> bool:
        """Whether RESUME is on and ``run`` was made by the code as it is now.

        Of several processes that share a run the first one looks, and all do as it says.

        Embeddings are not committed, so those of the replicate that the figures show may be missing
        where its row is present; then it is not finished.
        """
        return of_first(rank() == 0 and self._is_finished(run))

    def _is_finished(self, run: Run) -> bool:
        if not self.parameters["RESUME"] or not self._row_path(run).exists():
            return False
        is_pictured = run.seed == self.parameters["PICTURED_SEED"]
        if is_pictured and not self._embedding_path(run).exists():
            return False
        try:
            row = read_row(self._row_path(run))
        except (ValueError, FileNotFoundError):  # an earlier version, or what it shares is gone
            return False
        return row.get("code") == self._code()

    def save(
        self,
        run: Run,
        class_names: Sequence[str],
        selected: Evaluation,
        last: Evaluation | None = None,
        fit: Fit | None = None,
    ) -> dict[str, Any]:
        """Write the row, results by class and embeddings of a finished run, and return the row.

        Of several processes that share the run the first one writes.

        Args:
            run: which run.
            class_names: names of the test classes, by label, the same in every replicate.
            selected: test results at the selected step.
            last: test results at the last step; ``selected`` where nothing was selected.
            fit: what training returned; None for references that are not trained.
        """
        row = self._row(run, selected, last or selected, fit or Fit())
        if rank() == 0:
            self._write(run, class_names, selected, row)
        wait_for_all()
        return row

    def _write(
        self, run: Run, class_names: Sequence[str], selected: Evaluation, row: dict[str, Any]
    ) -> None:
        by_class = class_means(
            {
                name: values.numpy()
                for name, values in selected.retrieval.per_query.items()
                if is_kept_by_class(name)
            }
            | {"labels": selected.retrieval.labels.numpy(), "classes": np.array(class_names)}
        )
        write_scores(self._row_path(run).with_suffix(".npz"), by_class)
        if run.seed == self.parameters["PICTURED_SEED"]:
            with write_atomically(self._embedding_path(run)) as path, path.open("wb") as f:
                np.save(f, selected.embeddings.numpy().astype(np.float16))
        write_row(self._row_path(run), row, self.settings)  # last: where it is, all else is whole

    def _row(self, run: Run, selected: Evaluation, last: Evaluation, fit: Fit) -> dict[str, Any]:
        """Return the row of a run, with its learning curve as ``history``."""
        parameters = self.parameters
        cuda = torch.cuda.is_available() and parameters["DEVICE"] != "cpu"
        device = torch.cuda.get_device_name() if cuda else "cpu"
        end = fit.history[-1] if fit.history else {"step": 0, "images_seen": 0}
        return {
            "run_id": run.run_id,
            "chapter": self.chapter,
            "method": run.method,
            "dataset": parameters["DATASET"],
            "protocol": parameters["PROTOCOL"],
            "fold": run.fold,
            "seed": run.seed,
            "params": self.settings | run.settings,
            **{f"metric_{name}": round(x, DIGITS) for name, x in selected.metrics.items()},
            **{f"metric_{name}_last": round(x, DIGITS) for name, x in last.metrics.items()},
            "selected_step": fit.best_step,
            "steps": end["step"],
            "images_seen": end["images_seen"],
            "num_queries": len(selected.retrieval.queries),
            "num_lone_queries": selected.retrieval.num_lone,
            "seconds": round(fit.seconds, 2),
            "peak_mib": peak_mib(cuda),
            "device": f"{world_size()} x " * (world_size() > 1) + device,
            "threads": torch.get_num_threads(),
            "precision": parameters["PRECISION"],
            "code": self._code(),
            "commit": commit(),
            "versions": versions(),
            "data_fingerprint": run.data_fingerprint,
            "history": [{k: round(v, 6) for k, v in point.items()} for point in fit.history],
        }

    def trials(
        self, method: str, seed: int, data_fingerprint: str, search: Callable[[], list[Trial]]
    ) -> list[Trial]:
        """Return the trials of ``search``, made before or now, as ``searches/<run_id>.json``.

        Args:
            method: name of the method.
            seed: the replicate.
            data_fingerprint: digest of the data set's content.
            search: makes the trials.
        """
        run = self.run(method, seed, data_fingerprint)
        path = self.folder / "searches" / f"{run.run_id}.json"
        code = self._code()
        stored = {"code": ""}
        if rank() == 0 and self.parameters["RESUME"] and path.exists():
            with _named(path):
                stored = json.loads(path.read_text())
                stored |= {"code": stored["code"], "made": trials_of(stored)}
                stored["seconds"] = float(stored["seconds"])
        stored = of_first(stored)
        if stored["code"] == code:
            self.search_seconds[method, seed] = stored["seconds"]
            return stored["made"]
        start = time.perf_counter()
        # Rounded before they are used, so that a search found again chooses the same.
        found = [
            Trial(trial.settings, {step: round(x, DIGITS) for step, x in trial.scores.items()})
            for trial in of_first(search())
        ]
        record = {
            "method": method,
            "seed": seed,
            "seconds": round(time.perf_counter() - start, 1),
            "code": code,
            "commit": commit(),
            "trials": [vars(trial) for trial in found],
        }
        if rank() == 0:
            with write_atomically(path) as writable:
                writable.write_text(json.dumps(record, separators=(",", ":")))
        wait_for_all()
        self.search_seconds[method, seed] = record["seconds"]
        return found

    def stage(
        self,
        name: str,
        seed: int,
        data_fingerprint: str,
        make: Callable[[], dict[str, Any]],
        **settings: Any,
    ) -> dict[str, Any]:
        """Return what ``make`` returns, made before or now, as ``stages/<run_id>.pt``.

        For what several runs share and takes long, such as a teacher. A chapter that is stopped
        goes on behind the last stage that was finished; ``make`` must not depend on what random
        numbers were drawn before.

        Args:
            name: of the stage.
            seed: the replicate.
            data_fingerprint: digest of the data set's content.
            make: makes it: tensors, numbers and text, in dicts and lists.
            settings: whatever else determines it and is not a parameter of the chapter.

        Raises:
            ValueError: the file of one made before is damaged.
        """
        run = self.run(name, seed, data_fingerprint, **settings)
        path = self.folder / "stages" / f"{run.run_id}.pt"
        code = self._code()
        stored = {"code": ""}
        # Without RESUME too it takes what it made itself, or the students of a teacher had many.
        if rank() == 0 and (self.parameters["RESUME"] or path in self._made) and path.exists():
            try:
                stored = torch.load(path, map_location="cpu", weights_only=True)
                stored = {name: stored[name] for name in ("code", "made")}
                if not isinstance(stored["code"], str):
                    raise TypeError("its code is no text")
            except Exception as error:  # torch raises many kinds for half a file
                # Not made again unasked: it took long, and other files may be damaged too.
                raise ValueError(
                    f"{path} cannot be read ({type(error).__name__}); delete it to make it again"
                ) from error
        stored = of_first(stored)
        if stored["code"] == code:
            return stored["made"]
        made = of_first(make())
        if rank() == 0:
            with write_atomically(path) as writable:
                torch.save({"code": code, "made": made}, writable)
        wait_for_all()
        self._made.add(path)
        return made

    @contextmanager
    def attempt(self, *runs: Run) -> Iterator[None]:
        """Let the other runs go on where the loss of these diverges or a GPU's memory runs out.

        Args:
            runs: what the block makes, of which nothing is kept then; ``complete`` tells of them.
        """
        try:
            yield
        except FloatingPointError as error:
            self._failures.append(str(error))
        except torch.OutOfMemoryError as error:
            named = ", ".join(f"{run.method}, seed {run.seed}" for run in runs)
            said = f"{named}: the GPU has too little memory; lower BATCH_SIZE"
            if world_size() > 1:  # the others wait for this process, whose memory alone is short
                raise torch.OutOfMemoryError(said) from error
            self._failures.append(said)

    def complete(self) -> None:
        """Raise if one of the runs that were attempted has failed.

        Raises:
            FailedRunsError: a sentence for each of them.
        """
        if failures := list(dict.fromkeys(self._failures)):
            self._failures.clear()  # the cell may be run again
            raise FailedRunsError("; ".join(failures) + ". All other runs are finished and kept")

    def load(self, runs: list[Run]) -> pd.DataFrame:
        """Return the rows of ``runs``, sorted, and write them as ``runs.csv``.

        From then on tables and figures say where the rows do not stand for the data set.
        """
        rows = pd.DataFrame([read_row(self._row_path(run)) for run in runs])
        rows = rows.sort_values(["method", "seed"], ignore_index=True)
        self.stamp = what_rows_are(rows)
        with write_atomically(self.folder / "runs.csv") as path:
            table_of_runs(rows).to_csv(path, index=False)
        return rows

    def by_class(self, run_id: str) -> Scores:
        """Return what ``class_means`` made of a run's results: a line per class tested."""
        return read_scores(self.folder / "runs" / f"{run_id}.npz")

    def embeddings(self, run: Run) -> torch.Tensor:
        """Return the (N, D) test embeddings of a finished run of PICTURED_SEED, kept as float16."""
        return torch.from_numpy(np.load(self._embedding_path(run))).float()

    def save_table(
        self, name: str, table: pd.DataFrame, note: str = "", *, of_data: bool = True
    ) -> pd.DataFrame:
        """Write ``tables/<name>.csv`` and ``.md`` and return the table, for a cell to show.

        Args:
            name: file name without suffix.
            table: what to show.
            note: sentences below it.
            of_data: whether it comes from the images, and so says if they are only a part.
        """
        with write_atomically(self.folder / "tables" / f"{name}.csv") as path:
            table.to_csv(path)
        with write_atomically(self.folder / "tables" / f"{name}.md") as path:
            stamp = f"**{self.stamp}**" if of_data and self.stamp else ""
            said = " ".join(filter(None, [stamp, note]))
            path.write_text(markdown(table) + (f"\n{said}\n" if said else ""))
        if said:
            print(said)  # above the table in the notebook, below it in the file
        return table

    def save_figure(
        self, name: str, figure: plt.Figure, *, keep_local: bool = False, of_data: bool = True
    ) -> None:
        """Write ``figures/<name>.png``, or ``.jpg`` if it shows images.

        Args:
            name: file name without suffix.
            figure: the figure.
            keep_local: put it into ``pictures/``, which is never committed: for photographs whose
                licence forbids passing them on.
            of_data: see ``save_table``.
        """
        folder = self.folder / ("pictures" if keep_local else "figures")
        if of_data and self.stamp:
            figure.text(0.5, -0.01, self.stamp, ha="center", va="top", color="firebrick")
        shows_images = any(axis.images for axis in figure.axes)
        figure.savefig(drawn := io.BytesIO(), format="png", dpi=110, bbox_inches="tight")
        with write_atomically(folder / f"{name}.{'jpg' if shows_images else 'png'}") as path:
            path.write_bytes(compressed(drawn.getvalue(), shows_images=shows_images))

    def save_claims(self, claims: pd.DataFrame) -> pd.DataFrame:
        """Write ``claims.csv`` and return it, for a cell to show."""
        with write_atomically(self.folder / "claims.csv") as path:
            claims.to_csv(path, index=False)
        return claims

    def _row_path(self, run: Run) -> Path:
        return self.folder / "runs" / f"{run.run_id}.json"

    def _embedding_path(self, run: Run) -> Path:
        return self.folder / "embeddings" / f"{run.run_id}.npy"


def table_of_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what ``runs.csv`` holds: of each row what readers compare, to six decimals.

    Metrics are those at the selected step; those at the last one stand in the rows alone.
    """
    at_last = [name for name in rows if name.startswith("metric_") and name.endswith("_last")]
    return rows.drop(columns=[*NOT_IN_TABLE, *at_last]).round(6)


def trials_of(search: dict[str, Any]) -> list[Trial]:
    """Return the trials of a search, as read from a file in ``searches/``."""
    return [
        # JSON has made the steps text.
        Trial(trial["settings"], {int(step): score for step, score in trial["scores"].items()})
        for trial in search["trials"]
    ]


def what_rows_are(rows: pd.DataFrame) -> str:
    """Return a sentence on rows of random images or of a part of the data; else nothing."""
    if rows["data_fingerprint"].str.startswith("generated").any():
        return "Not run: random images in the layout of the data set."
    limits = ("MAX_CLASSES", "MAX_IMAGES_PER_CLASS")
    if any(params.get(limit) for params in rows["params"] for limit in limits):
        return "A part of the data, for a quick look: the numbers say little."
    return ""


def write_row(path: Path, row: dict[str, Any], shared: dict[str, Any]) -> None:
    """Write a row, its learning curve by column, and once what it shares.

    That is parameters and the names of its metrics, with the rows beside it, and all metrics where
    the step chosen is the last.

    Args:
        path: of the row, in ``runs/``.
        row: with all that determines the run as ``params``.
        shared: the chapter's parameters.
    """
    own = {k: v for k, v in row["params"].items() if k not in shared or shared[k] != v}
    columns = {name for point in row["history"] for name in point}
    curve = {name: [point.get(name) for point in row["history"]] for name in sorted(columns)}
    made = _share(path, {name: row[name] for name in CIRCUMSTANCES})
    metrics = {name: value for name, value in row.items() if name.startswith("metric_")}
    elsewhere = {*metrics, *CIRCUMSTANCES}
    at_last = {name for name in metrics if name.endswith("_last")}
    chosen = {name: value for name, value in metrics.items() if name not in at_last}
    if chosen == {name.removesuffix("_last"): metrics[name] for name in at_last}:
        metrics = chosen
    stored = {name: value for name, value in row.items() if name not in elsewhere}
    stored |= {"metrics": _share(path, {"metrics": [*metrics]}), "values": [*metrics.values()]}
    stored |= {"params": own, "made": made, "parameters": _share(path, shared), "history": curve}
    with write_atomically(path) as writable:
        writable.write_text(json.dumps(stored, separators=(",", ":")))


class DamagedFileError(ValueError):
    """A file of results cannot be read. The message names it and the remedy."""


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in the error of one that is damaged."""
    try:
        yield
    except OSError as error:
        if error.filename:
            raise
        raise OSError(f"{path} cannot be read ({error}); make its run again") from error
    except Exception as error:  # json, NumPy and zipfile let all kinds through for half a file
        if isinstance(error, DamagedFileError):
            raise  # it says so already
        raise DamagedFileError(
            f"{path} cannot be read ({error}); delete it, and its run is made again"
        ) from error


def read_row(path: Path) -> dict[str, Any]:
    """Return what ``write_row`` wrote.

    Raises:
        ValueError: it is damaged, or names no parameters, as rows of earlier versions.
    """
    with _named(path):
        return _read_row(path)


def _read_row(path: Path) -> dict[str, Any]:
    row = json.loads(path.read_text())
    try:
        shared, made, names = (_shared(path, row.pop(n)) for n in ("parameters", "made", "metrics"))
        metrics = dict(zip(names["metrics"], row.pop("values"), strict=True))
    except KeyError as error:
        raise DamagedFileError(
            f"{path} is of an earlier version of the book; run its chapter again"
        ) from error
    if not any(name.endswith("_last") for name in metrics):
        metrics |= {f"{name}_last": value for name, value in metrics.items()}
    curve = row.pop("history")
    history = [
        {k: v for k, v in zip(curve, point, strict=True) if v is not None}
        for point in zip(*curve.values(), strict=True)
    ]
    behind = [*row].index("selected_step")  # where metrics stand in a row
    parts = [*row.items()]
    row = dict(parts[:behind]) | metrics | dict(parts[behind:])
    return row | made | {"params": shared | row["params"], "history": history}


def finished_rows(folder: Path) -> pd.DataFrame:
    """Return the rows that ``runs.csv`` of a chapter's folder lists, whole.

    Raises:
        FileNotFoundError: the chapter has not been run to its end there, or rows are gone.
    """
    run_ids = pd.read_csv(folder / "runs.csv")["run_id"]
    return pd.DataFrame([read_row(folder / "runs" / f"{run_id}.json") for run_id in run_ids])


def _share(row: Path, values: dict[str, Any]) -> str:
    """Write what rows share, once, and return the name of the file."""
    text = _text(values)
    digest = _digest(text)
    path = row.parent.parent / "parameters" / f"{digest}.json"
    if not path.exists() or path.read_text() != text:  # damaged
        with write_atomically(path) as writable:
            writable.write_text(text)
    return digest


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _shared(row: Path, digest: str) -> dict[str, Any]:
    """Return what ``_share`` wrote."""
    if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{12}", digest)):
        raise DamagedFileError(f"{row} names {digest!r}, no file of parameters; make its run again")
    path = row.parent.parent / "parameters" / f"{digest}.json"
    with _named(path):
        values = json.loads(path.read_text())
        if _digest(_text(values)) != digest:  # layout and line ends may differ
            raise DamagedFileError(
                f"{path} was changed; restore it, or all rows that name it are made again"
            )
        return values


def is_kept_by_class(metric: str) -> bool:
    """Return whether a row keeps a metric by class: all that intervals are made of.

    Recall@K above 1, of which tables show the mean alone, would be a third of all results.
    """
    return metric == "recall_at_1" or not metric.startswith("recall_at_")


def write_scores(path: Path, scores: Scores) -> None:
    """Write results by class, what all methods of a replicate share beside them and once.

    That is which classes were tested with how many queries, a third of the space; it names the
    array of metrics, one of its fields each. (Every further array costs hundreds of bytes.) A value
    is kept to the nearest 1/32767, a thousandth of what classes differ by.

    Raises:
        ValueError: a metric is not between -1 and 1.
    """
    tested = {name: scores[name] for name in ABOUT_LINES}
    digest = hashlib.sha256(b"".join(values.tobytes() for values in tested.values()))
    shared = f"tested-{digest.hexdigest()[:12]}"
    if not (path.parent / f"{shared}.npz").exists():
        _write_arrays(path.parent / f"{shared}.npz", **tested)
    metrics = [name for name in scores if name not in tested]
    values = np.empty(len(tested["queries"]), [(name, np.int16) for name in metrics])
    for name in metrics:
        if not (np.abs(scores[name]) <= 1).all():  # nor is NaN
            raise ValueError(f"{path.stem}: results by class of {name} are not between -1 and 1")
        values[name] = np.round(scores[name] * STEPS_OF_ONE)
    _write_arrays(path, **{shared: values})


def read_scores(path: Path) -> Scores:
    """Return what ``write_scores`` wrote.

    Raises:
        ValueError: it is damaged, or of an earlier version of the book.
    """
    with _named(path), np.load(path) as stored:
        if len(stored.files) != 1:
            raise DamagedFileError(
                f"{path} is of an earlier version of the book; run its chapter again"
            )
        shared = stored.files[0]
        if not re.fullmatch("tested-[0-9a-f]{12}", shared):  # it becomes the name of a file
            raise ValueError(f"it names {shared!r}")
        values = stored[shared]
        # In rows of an earlier version they are float32, and no steps.
        one = STEPS_OF_ONE if values[values.dtype.names[0]].dtype == np.int16 else 1.0
        metrics = {name: values[name].astype(float) / one for name in values.dtype.names}
    beside = path.parent / f"{shared}.npz"
    with _named(beside), np.load(beside) as tested:
        return {name: tested[name] for name in ABOUT_LINES} | metrics


def _write_arrays(path: Path, **arrays: np.ndarray) -> None:
    with write_atomically(path) as writable, writable.open("wb") as f:
        np.savez_compressed(f, **arrays)


def compressed(png: bytes, *, shows_images: bool) -> bytes:
    """Return a drawn figure in a third of the space, with no difference to be seen.

    Args:
        png: the figure.
        shows_images: whether there are images in it; then it becomes a JPEG. Lines and points need
            no more than 64 colours, and stay a PNG.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    stored = io.BytesIO()
    if shows_images:
        # Colour at full resolution, since at half of it thin frames and signs are blurred.
        image.save(stored, format="JPEG", quality=65, subsampling=0, optimize=True)
    else:
        # Median cut, the default, would give nearly all of the colours to shades of the paper, and
        # thin lines of two methods the same one.
        few = image.quantize(64, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
        few.save(stored, format="PNG", optimize=True)
    return stored.getvalue()


def file_digest(name: str) -> str:
    """Return a digest of the weights file called ``name``; empty for ``none`` or ``imagenet``."""
    path = resolve(name)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else ""


def markdown(table: pd.DataFrame) -> str:
    """Return ``table`` with its index as a GitHub table."""
    frame = table.reset_index()
    lines = [list(map(str, frame.columns)), ["---"] * frame.shape[1]]
    lines += [[str(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
