"""The ``dmlkit`` command: run the book, keep notebooks and README in step, and check data."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import yaml

from dmlkit.chapters import edited_chapters, profile_names, sync_notebooks
from dmlkit.paths import resolve
from dmlkit.readme import update_readme
from dmlkit.running import run_book


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``dmlkit`` command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="dmlkit", description="Run and maintain the book; check data."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute chapters, resuming what is finished")
    run.add_argument(
        "chapters", nargs="*", metavar="CHAPTER", help="such as 01_evaluation (default: all)"
    )
    run.add_argument(
        "--profile",
        default="mini",
        help=f"{', '.join(profile_names())}: a file in book/profiles (default: mini)",
    )
    run.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="overrides",
        help="set a parameter of the chapters; may be repeated: -p SEEDS [0,1]",
    )
    run.add_argument("--results-dir", help="default: results/local/<profile>")
    run.add_argument(
        "--workers", type=int, help="notebooks at a time (default: one per GPU, else per core)"
    )
    run.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="of a Dask cluster that executes the notebooks, such as tcp://host:8786",
    )
    run.add_argument(
        "--processes-per-run",
        type=int,
        default=1,
        metavar="N",
        help="processes that share each training run, by torchrun, each with a GPU of its own",
    )
    sync = commands.add_parser("sync", help="build book/*.ipynb from book/*.py")
    sync.add_argument("--check", action="store_true", help="fail if a notebook is out of date")
    data = commands.add_parser("data", help="check the data sets, and say how to get them")
    data.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    data.add_argument("--data-dir", help="folder that holds them (default: data/ of the project)")
    data.add_argument("--quick", action="store_true", help="read lists only, open no images")
    data.add_argument("--download", action="store_true", help="fetch it first (omniglot only)")
    site = commands.add_parser("site", help="render executed chapters as web pages")
    site.add_argument("--profile", default="mini", help="as for run (default: mini)")
    site.add_argument(
        "--results-dir",
        help="folder with the executed chapters (default: results/local/<profile> if you have run "
        "a chapter of the profile, else the committed results/<profile>)",
    )
    site.add_argument("--output", help="replaced as a whole (default: site/<profile>)")
    check = commands.add_parser("check-rows", help="check a folder of results without its data")
    check.add_argument("folder", metavar="FOLDER", help="of a chapter or of a whole profile")
    commands.add_parser("readme", help="rewrite the results table of README.md from results/")
    options = parser.parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        # What a batch system sends ends a run as Ctrl-C does: no process goes on by itself.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        do = {"run": _run, "site": _site, "sync": _sync, "data": _data, "readme": _readme}
        do["check-rows"] = _check_rows
        return do[options.command](options)
    except (ValueError, OSError) as error:
        print(f"dmlkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dmlkit: interrupted; the same command resumes", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    notes = []
    if edited := edited_chapters():
        # JupyterLab saves what is tried out in a chapter, and nobody may remember.
        notes.append(
            f"as edited since the last commit: {', '.join(edited)}; parameters that the profile "
            "sets too are the profile's, change those by -p"
        )
    if different := [path.name for path in sync_notebooks(check=True)]:
        notes.append(
            f"{', '.join(different)}: not as its .py, which is what runs; open and save it in "
            "JupyterLab to keep what you changed there, or `make notebooks` builds it anew"
        )
    if options.scheduler:
        notes.append(f"asking {options.scheduler} for workers, half a minute at most")
    for note in notes:
        print(f"dmlkit: {note}", file=sys.stderr)
    overrides = {name: _value(name, text) for name, text in options.overrides}
    index, failures = run_book(
        options.chapters,
        options.profile,
        overrides,
        results_dir=options.results_dir,
        workers=options.workers,
        scheduler=options.scheduler,
        processes_per_run=options.processes_per_run,
    )
    for failure in failures:
        print(f"dmlkit: {failure}", file=sys.stderr)
    if failures:
        return 1
    print(f"results: {index}")
    return 0


def _value(name: str, text: str) -> object:
    """Return the value that ``text`` means in YAML."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError) as error:  # as of a 31st of February
        raise ValueError(
            f"{name}={text} cannot be read; write lists without spaces, like [0,1]"
        ) from error


def _sync(options: argparse.Namespace) -> int:
    changed = sync_notebooks(check=options.check)
    for path in changed:
        print(f"{path.name} {'differs from its .py; run make notebooks' if options.check else ''}")
    return 1 if changed and options.check else 0


def _data(options: argparse.Namespace) -> int:
    # Importing torch takes seconds, which the other commands can spare.
    from dmlkit.datasets import FAMILIES, READERS
    from dmlkit.datasets.checking import check_data, download

    known = [name for name in READERS if name not in ("class_folder", "list_files")]
    if drawn := set(options.names) & set(FAMILIES):
        raise ValueError(f"{min(drawn)} is drawn by this project and needs no data")
    if unknown := set(options.names) - set(READERS):
        raise ValueError(f"there is no data set {min(unknown)!r}; choose from {', '.join(READERS)}")
    # Unlike DATA_DIR, which a notebook reads from anywhere, this is a path as on any command line.
    root = Path(options.data_dir).absolute() if options.data_dir else resolve("data")
    if options.data_dir and not options.download and not root.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; set --data-dir to the one with the data"
        )
    all_right = True
    if options.download:
        download(options.names, root)
    for name in options.names or known:
        lines, state = check_data(name, root, quick=options.quick)
        print("\n".join(lines), flush=True)
        # Nobody has all of them, so what is absent counts only if it was asked for.
        all_right = all_right and (state == "whole" or (state == "absent" and not options.names))
    return 0 if all_right else 1


def _site(options: argparse.Namespace) -> int:
    # Only this command needs to read the code of all modules.
    from dmlkit.site import build_site

    output = Path(options.output).absolute() if options.output else None
    print("rendering the pages, about a minute", flush=True)
    front_page, shown = build_site(options.profile, options.results_dir, output)
    print(f"site: {front_page}, of {shown}")
    return 0


def _check_rows(options: argparse.Namespace) -> int:
    from dmlkit.checking_rows import check_rows

    problems, remarks = check_rows(Path(options.folder).absolute())
    print("\n".join([*remarks, *problems]))
    return 1 if problems else 0


def _readme(options: argparse.Namespace) -> int:
    update_readme()
    return 0


if __name__ == "__main__":
    sys.exit(main())
