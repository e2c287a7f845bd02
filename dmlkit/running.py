"""Run the book: chapters by papermill, in worker processes that Dask keeps.

The work list is chapters x replicates. A worker executes a chapter for one seed up to its cell
tagged ``runs`` and so fills rows; when all rows of a chapter are there, one more execution, which
finds every run finished, draws its tables, figures and claims.
"""

import base64
import csv
import errno
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from dmlkit.chapters import (
    BOOK,
    all_parameters,
    chapter_names,
    chapter_parameters,
    chapter_source,
    chapters_read,
    has_runs,
    parameter_defaults,
    read_notebook,
    up_to_runs,
)
from dmlkit.index import write_index
from dmlkit.paths import PROJECT_ROOT, check_writable, resolve, write_atomically

LOCAL_RESULTS = PROJECT_ROOT / "results" / "local"
# By default glibc gives large freed blocks back to the system, which then clears each page of the
# next ones and so slows a training step on a CPU (results/benchmarks/cost.md). Other C libraries
# ignore these variables.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# What kernels get from whoever called the runner, since Dask gives its workers values of its own.
OF_THE_CALLER = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PYTHONHASHSEED"),
    *KEEP_MEMORY,
)
# Errors of the package, whose message says what to do.
WITH_A_SENTENCE = (
    *("ValueError", "FileNotFoundError", "PermissionError", "FloatingPointError"),
    *("FailedRunsError", "OutOfMemoryError"),
)


def run_book(
    chapters: Sequence[str] = (),
    profile: str = "mini",
    overrides: dict[str, Any] | None = None,
    *,
    results_dir: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    processes_per_run: int = 1,
) -> tuple[Path, list[str]]:
    """Execute chapters under a profile, resuming what an earlier call has finished.

    Args:
        chapters: names of chapters; none means all.
        profile: name of a file in ``book/profiles``.
        overrides: parameters that replace the profile's.
        results_dir: where the profile's results go, ``results/local/<profile>`` by default.
        workers: processes of this machine; by default one per GPU, or one per NUM_THREADS cores.
        scheduler: address of a Dask scheduler whose workers are used instead.
        processes_per_run: processes that share each training run, each with a GPU of its own.

    Returns:
        The index page, and one sentence per failure.

    Raises:
        ValueError: an unknown chapter, profile or parameter, workers with other code or both of
            this machine and elsewhere, or fewer processes than one.
        PermissionError: the results folder cannot be written to.
        FileNotFoundError: the data folder or the weights file is missing.
        OSError: no scheduler, or none of its workers, answers.
    """
    if processes_per_run < 1 or (workers is not None and workers < 1):
        raise ValueError("a run takes one process or more, and the book one worker or more")
    if workers and scheduler:
        raise ValueError("--workers are of this machine; leave it out, or --scheduler")
    overrides = dict(overrides or {})
    if results_dir:
        overrides["RESULTS_DIR"] = results_dir
    chapters = list(chapters) or chapter_names()
    # A parameter that only some of the chapters have is theirs; one that none has is refused.
    own = {chapter: parameter_defaults(chapter) for chapter in chapters}
    known = {name for names in own.values() for name in names}
    plan = {
        c: chapter_parameters(
            c, profile, {k: v for k, v in overrides.items() if k in own[c] or k not in known}
        )
        for c in chapters
    }
    folder = resolve(all_parameters(chapters[0], plan[chapters[0]])["RESULTS_DIR"])
    check_writable(folder)
    for chapter, parameters in plan.items():
        _check_inputs_exist(all_parameters(chapter, parameters))
    stale = {c: p for c, p in plan.items() if not is_up_to_date(c, p)}
    for chapter, parameters in plan.items():  # those that others are read by come first
        if not stale.keys().isdisjoint(chapters_read(all_parameters(chapter, parameters))):
            stale[chapter] = parameters
    failures = []
    if stale:
        failures = _run_plan(stale, folder, workers, scheduler, processes_per_run)
    shown = {name: value for name, value in overrides.items() if name != "RESULTS_DIR"}
    return write_index(folder, profile, shown), failures


def _check_inputs_exist(parameters: dict[str, Any]) -> None:
    """Raise before any kernel starts if the data or the weights are not there, or not whole."""
    _data_stamp(parameters)
    remedies = {
        "WEIGHTS": "set WEIGHTS to a path, or to imagenet with INPUT_CONVENTION torchvision",
        "SWAV_CHECKPOINT": "set SWAV_CHECKPOINT to an official SwAV file, or to none",
    }
    for name, remedy in remedies.items():
        weights = parameters.get(name, "none")
        if weights not in ("none", "imagenet") and not resolve(weights).is_file():
            raise FileNotFoundError(f"there is no weights file {resolve(weights)}; {remedy}")


def _run_plan(
    plan: dict[str, dict[str, Any]],
    folder: Path,
    workers: int | None,
    scheduler: str | None,
    processes: int,
) -> list[str]:
    """Fill rows with all workers, render each chapter when its rows are there; return failures."""
    # Dask takes a while to import, which a run that finds all finished can spare.
    from dmlkit.workers import connect, local_workers, num_workers

    every = {c: all_parameters(c, p) for c, p in plan.items()}
    if not scheduler:
        wants_gpu = any(p.get("DEVICE") != "cpu" for p in every.values())
        threads = max(p.get("NUM_THREADS", 1) for p in every.values())
        workers = workers or local_workers(
            wants_gpu=wants_gpu, threads=threads, processes=processes
        )
    started = time.time()
    # Now, because Dask sets some of them in this process, too.
    environment = {name: os.environ.get(name, KEEP_MEMORY.get(name)) for name in OF_THE_CALLER}
    with connect(workers, scheduler, processes) as client:
        several = num_workers(client) > 1

        def submit(chapter: str, parameters: dict, part: str, rows: list, read: list) -> Any:
            # Up to the hyphen it says which tasks are of one kind; else Dask leaves them where
            # they are, with one worker idle beside another's queue.
            key = f"{chapter}-{part} {started}"
            how = (chapter, parameters, part, processes, environment)
            # A chapter is drawn as soon as it can be.
            priority = 0 if part else 1
            return client.submit(_execute_after, rows, read, *how, key=key, priority=priority)

        rows: dict[str, list] = {}
        for chapter, parameters in every.items():
            # One worker, or one replicate, gains nothing from filling rows apart from rendering,
            # and a kernel takes ten seconds to start, which a few steps are not worth.
            seeds = parameters.get("SEEDS", [])
            is_worth_it = several and len(seeds) > 1 and parameters.get("STEPS", 0) >= 100
            # But of one kernel no processes can share a run.
            apart = seeds if has_runs(chapter) and (is_worth_it or processes > 1) else []
            rows[chapter] = [
                submit(chapter, plan[chapter] | {"SEEDS": [seed]}, f"seed{seed}", [], [])
                for seed in apart
            ]
        whole: dict[str, Any] = {}
        for chapter in sorted(plan, key=lambda name: bool(chapters_read(every[name]))):
            # Their rows are there then, so rendering resumes even where RESUME is off.
            parameters = plan[chapter] | ({"RESUME": True} if rows[chapter] else {})
            read = [whole[name] for name in chapters_read(every[chapter]) if name in whole]
            whole[chapter] = submit(chapter, parameters, "", rows[chapter], read)
        return _await([*sum(rows.values(), []), *whole.values()], folder, started, client)


def _execute_after(
    rows: list[str | None],
    read: list[str | None],
    chapter: str,
    parameters: dict,
    part: str,
    processes: int,
    environment: dict[str, str | None],
) -> str | None:
    """Execute a chapter once its rows are filled, if they are, and what it reads is executed."""
    if any(rows):
        return None
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    try:
        if part and processes > 1:
            return fill_by_torchrun(chapter, parameters, part, processes)
        return execute(chapter, parameters, part)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return f"{chapter} {part}: {type(error).__name__}: {error}"
        where = error.filename or "its folder"
        return f"{chapter}: no space is left for {where}; make room, and the same command resumes"


def _await(notebooks: list, folder: Path, started: float, client: Any) -> list[str]:
    """Wait for notebooks, showing finished runs, and return failures."""
    from distributed import wait

    from dmlkit.workers import check_alive

    failures, pending = [], set(notebooks)
    with tqdm(total=len(notebooks), unit=" notebooks", ascii=True, mininterval=0) as progress:
        while pending:
            with suppress(TimeoutError, CancelledError):
                wait(pending, timeout=1, return_when="FIRST_COMPLETED")
            check_alive(client)
            done = {future for future in pending if future.done()}
            pending -= done
            failures += [failure for future in done if (failure := _failure_of(future))]
            rows = [p for p in folder.glob("*/runs/[!.]*.json") if p.stat().st_mtime >= started]
            if rows:
                latest = max(rows, key=lambda p: p.stat().st_mtime).stem.rpartition("-")[0]
                progress.set_postfix_str(f"{len(rows)} runs, last {latest}", refresh=False)
            if done:
                progress.update(len(done))
            if sys.stderr.isatty():  # a log gets a line per notebook, a person a clock that ticks
                progress.refresh()
    return list(dict.fromkeys(failures))


def _failure_of(future: Any) -> str | None:
    """Return the sentence of a notebook that failed; one whose worker was lost has none itself."""
    if future.cancelled():
        raise OSError("the Dask scheduler is gone; the same command resumes")
    error = future.exception()
    if error is None:
        return future.result()
    what = future.key.rpartition(" ")[0].replace("-", " ").strip()
    return f"{what}: {type(error).__name__}: {error}"


def execute(chapter: str, parameters: dict[str, Any], part: str = "") -> str | None:
    """Execute a chapter's notebook, retrying once if its kernel dies, and return the failure.

    Args:
        chapter: name of the chapter.
        parameters: values to inject.
        part: name of a part of the replicates, for which rows are filled and nothing is drawn;
            empty executes the whole notebook and keeps it as ``chapter.ipynb``.
    """
    notebook = read_notebook(chapter_source(chapter))
    folder = resolve(all_parameters(chapter, parameters)["RESULTS_DIR"]) / chapter
    log = _log_of(chapter, parameters, part)
    started = time.monotonic()
    for attempt in (1, 2):
        try:
            executed = _papermill(up_to_runs(notebook) if part else notebook, parameters, log)
        except PapermillExecutionError as error:
            taken = re.match(r"\[Errno 2\] [^:]+: '?([^']+)", error.evalue)
            ours = (str(folder), os.environ.get("DMLKIT_CACHE", str(PROJECT_ROOT / ".cache")))
            if taken and taken[1].startswith(ours):
                return f"{chapter}: {taken[1]} was taken away; the same command makes it again"
            if error.ename in WITH_A_SENTENCE:
                return f"{chapter}: {error.evalue}"
            return f"{chapter}: {error.ename}: {error.evalue} (see {log})"
        except (DeadKernelError, RuntimeError) as error:  # RuntimeError: it never answered
            if attempt == 2:
                return f"{chapter} {part}: the kernel died twice ({error}); is memory short?"
            said = f"dmlkit: {chapter} {part}: the kernel died and is started once more"
            print(" ".join(said.split()), file=sys.stderr, flush=True)
        else:
            break
    if not part:
        _keep(executed, folder, chapter, parameters, time.monotonic() - started)
    return None


def fill_by_torchrun(
    chapter: str, parameters: dict[str, Any], part: str, processes: int
) -> str | None:
    """Fill the rows of a part of the replicates with several processes, and return the failure.

    Once more if they ended without a word, as a kernel that dies is started again.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(processes), "-m", "dmlkit.torchrun"]
    environment = os.environ | {"DMLKIT_STARTED_BY": str(os.getpid())}
    log = _log_of(chapter, parameters, part)
    for _ in range(2):
        with log.open("w") as lines:
            lines.write(_heading(parameters))
            lines.flush()
            ended = subprocess.run(
                [*torchrun, chapter, json.dumps(parameters)],
                stdout=lines,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=PROJECT_ROOT,
            )
        if not ended.returncode:
            return None
        if said := re.findall(r"^dmlkit: (.+)$", log.read_text(), re.MULTILINE):
            return said[0]
    return f"{chapter}: torchrun ended with {ended.returncode} twice (see {log})"


def _log_of(chapter: str, parameters: dict[str, Any], part: str) -> Path:
    """Return the log of a chapter or of a part of its replicates, whose folder is made."""
    folder = resolve(all_parameters(chapter, parameters)["RESULTS_DIR"]) / chapter / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{part or 'chapter'}.log"


def _heading(parameters: dict[str, Any]) -> str:
    return f"{time.strftime('%F %T')} {platform.node()} {json.dumps(parameters)}\n"


def _papermill(
    notebook: nbformat.NotebookNode, parameters: dict, log: Path
) -> nbformat.NotebookNode:
    """Execute ``notebook`` with papermill in folders of its own; what its cells print is logged."""
    with tempfile.TemporaryDirectory(prefix="dmlkit-") as folder, log.open("w") as lines:
        # Kernels that share these folders have been seen to pick each other's ports.
        os.environ["IPYTHONDIR"] = f"{folder}/ipython"
        # That a kernel died is told by whoever starts it again.
        logging.getLogger("papermill").setLevel(logging.CRITICAL)
        os.environ["JUPYTER_RUNTIME_DIR"] = f"{folder}/runtime"
        source, output = f"{folder}/source.ipynb", f"{folder}/output.ipynb"
        nbformat.write(notebook, source)
        lines.write(_heading(parameters))
        try:
            return papermill.execute_notebook(
                source,
                output,
                parameters,
                kernel_name="python3",
                cwd=BOOK,
                progress_bar=False,
                stdout_file=lines,
                stderr_file=lines,
                # Each kernel would warn that it listens on this machine unencrypted, and tell of
                # the interrupt by which it is asked to end.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except Exception as error:
            lines.write(f"{error}\n")
            raise
        finally:
            lines.write(f"{time.strftime('%F %T')} ended\n")


def _keep(
    notebook: nbformat.NotebookNode,
    folder: Path,
    chapter: str,
    parameters: dict[str, Any],
    seconds: float,
) -> None:
    """Write the executed notebook without what must not, or need not, be kept."""
    # These import torch, which the runner can spare.
    from dmlkit.datasets import PICTURES_MAY_BE_SHOWN
    from dmlkit.results import compressed

    dataset = all_parameters(chapter, parameters).get("DATASET", "aviary")
    may_show = dataset in PICTURES_MAY_BE_SHOWN or folder.is_relative_to(LOCAL_RESULTS)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type != "code":
            cell.source = _with_links_from(folder, cell.source)
            continue
        cell.metadata.pop("execution", None)
        shows_images = "pictures" in cell.metadata.get("tags", [])
        cell.outputs = _joined(cell.outputs) if may_show or not shows_images else []
        of_data = [output.data for output in cell.outputs if "data" in output]
        for data in of_data:
            if "text/html" in data:  # a table, which every viewer shows by that
                data.pop("text/plain", None)
                # A row per line: the indentation of a line per cell is half of a table's bytes.
                data["text/html"] = re.sub(r"\n\s+(?=<t[dh]>)", "", data["text/html"])
        for data in (data for data in of_data if "image/png" in data):
            png = base64.b64decode(data.pop("image/png"))
            stored = compressed(png, shows_images=shows_images)
            kind = "image/jpeg" if shows_images else "image/png"
            data[kind] = base64.b64encode(stored).decode()
    notebook.metadata.pop("papermill", None)  # holds absolute paths
    notebook.metadata.pop("jupytext", None)  # or JupyterLab would write a source beside it
    notebook.metadata["dmlkit"] = {
        "inputs": _inputs(chapter, parameters),
        "seconds": round(seconds, 1),
    }
    with write_atomically(folder / "chapter.ipynb") as path:
        nbformat.write(notebook, path)


def _with_links_from(folder: Path, text: str) -> str:
    """Return Markdown of ``book/`` with its links to files as they are from ``folder``."""

    def moved(link: re.Match[str]) -> str:
        target = BOOK / link[1]
        if not target.exists():  # an address, or brackets of a formula
            return link[0]
        if target.suffix == ".ipynb":
            return f"](../{target.stem}/chapter.ipynb)"
        # From elsewhere the way there would name this machine's folders.
        is_inside = folder.is_relative_to(PROJECT_ROOT)
        return f"]({os.path.relpath(target, folder)})" if is_inside else link[0]

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return outputs with neighbouring text joined and each progress bar in its last state."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        previous = joined[-1] if joined else None
        if output.output_type == "stream" and previous and previous.get("name") == output.name:
            previous.text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return [o for o in joined if o.output_type != "stream" or o.text.strip()]


def is_up_to_date(chapter: str, parameters: dict[str, Any]) -> bool:
    """Whether the executed chapter was made by the present code with these parameters."""
    every = all_parameters(chapter, parameters)
    folder = resolve(every["RESULTS_DIR"]) / chapter
    executed = folder / "chapter.ipynb"
    if not every.get("RESUME", True) or not executed.exists():
        return False
    if has_runs(chapter) and not _has_all_rows(folder):
        return False
    kept = json.loads(executed.read_text())["metadata"].get("dmlkit", {})
    return kept.get("inputs") == _inputs(chapter, parameters)


def _has_all_rows(folder: Path) -> bool:
    """Whether every row that ``runs.csv`` lists is there."""
    table = folder / "runs.csv"
    if not table.exists():
        return False
    with table.open() as file:
        return all(
            (folder / "runs" / f"{row['run_id']}.json").exists() for row in csv.DictReader(file)
        )


def _inputs(chapter: str, parameters: dict[str, Any]) -> str:
    """Return a digest of all that an executed chapter depends on.

    Of data and weights it takes names, sizes and times, which is quick; the rows know the content.
    """
    every = all_parameters(chapter, parameters)
    digest = hashlib.sha256(json.dumps(every | {"RESUME": True}, sort_keys=True).encode())
    sources = sorted((PROJECT_ROOT / "dmlkit").rglob("*.py"))
    for path in [*sources, chapter_source(chapter), BOOK / "claims.csv"]:
        digest.update(path.read_bytes())
    for name in ("WEIGHTS", "SWAV_CHECKPOINT"):
        weights = resolve(every.get(name, "none"))
        if weights.is_file():
            digest.update(f"{weights.stat().st_size} {weights.stat().st_ctime_ns}".encode())
    folder, read = resolve(every["RESULTS_DIR"]), chapters_read(every)
    splits = (folder, folder / "official")  # chapter 7 shows rows of both
    tables = [p for name in read for place in splits for p in (place / name).glob("**/[!.]*.csv")]
    claims = folder.parent.glob("*/*/claims.csv") if read else []  # of all profiles
    for path in sorted({*tables, *claims}):
        digest.update(path.read_bytes())
    kept = (path for name in read for path in (folder / name).glob("[es]*/[!.]*"))
    digest.update("".join(sorted(path.name for path in kept)).encode())  # embeddings, searches
    digest.update(_data_stamp(every).encode())
    return digest.hexdigest()[:16]


def _data_stamp(parameters: dict[str, Any]) -> str:
    """Return what shows that the data of a chapter may have changed; drawn data do not.

    These are its data set, and another one that is its pool.

    Raises:
        ValueError: there is no such data set, or it does not follow its published protocol.
        FileNotFoundError: one is not there, or images of it are missing.
    """
    name = parameters.get("DATASET", "aviary")
    if chapters_read(parameters):  # it needs rows, and data only for pictures
        return ""
    if (PROJECT_ROOT / "dmlkit" / "datasets" / "drawings" / f"{name}.py").exists():
        return ""  # nor can they have another data set as their pool
    # Importing torch takes seconds, which a run on drawn data can spare.
    from dmlkit.datasets import READERS, list_images
    from dmlkit.datasets.decoding import stamp

    found = stamp(list_images(name, parameters["DATA_DIR"]))
    pool = parameters.get("POOL", "none")
    if pool not in READERS:  # none, or classes of the data set itself
        return found
    root = parameters["DATA_DIR" if parameters["POOL_ROOT"] in ("", "none") else "POOL_ROOT"]
    try:
        return found + stamp(list_images(pool, root))
    except FileNotFoundError as error:
        # Readers speak of DATA_DIR, but to change that would lose the data set itself.
        raise FileNotFoundError(
            f"POOL={pool}: {str(error).replace('DATA_DIR', 'POOL_ROOT')}"
        ) from error
