"""What tests of several chapters share: the rows of a folder, and a chapter's cells, executed."""

import matplotlib
import pandas as pd
import pytest
import torch

from dmlkit.chapters import chapter_parameters, chapter_source, read_notebook, up_to_runs
from dmlkit.results import read_row

# Of the smoke profile.
REFERENCES = ["frozen_trunk", "colour_histogram", "raw_pixels", "pca", "within_class_whitening"]


def whole_rows(folder):
    """Return a table of all that JSON holds of the runs of a chapter."""
    return pd.DataFrame([*all_rows(folder).values()])


def all_rows(folder):
    """Return every row of a chapter, history included, by method and seed."""
    found = [read_row(path) for path in (folder / "runs").glob("[!.]*.json")]  # none half written
    return {(row["method"], row["seed"]): row for row in found}


def curve(row):
    return tuple(entry["loss"] for entry in row["history"])


def metrics_of(row):
    return {name: value for name, value in row.items() if name.startswith("metric_")}


def execute_cells(chapter, folder, *, profile="smoke", runs=True, **changes):
    """Execute the cells of a chapter up to its runs, in this process, and return their names.

    Args:
        chapter: name of the chapter.
        folder: where results go.
        profile: name of the profile.
        runs: execute the cell that trains, too.
        changes: parameters.
    """
    changes["RESULTS_DIR"] = str(folder)
    parameters = chapter_parameters(chapter, profile, changes)
    names = {"__name__": chapter}
    threads = torch.get_num_threads()
    try:
        with matplotlib.rc_context():
            for cell in up_to_runs(read_notebook(chapter_source(chapter))).cells:
                tags = cell.metadata.get("tags", [])
                if cell.cell_type == "code" and (runs or "runs" not in tags):
                    exec(cell.source, names)
                    if "parameters" in tags:
                        names |= parameters
    finally:
        torch.set_num_threads(threads)
    return names


def check_refusal(chapter, folder, message, **changes):
    """Assert that a chapter refuses parameters in one sentence, before anything is trained."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        execute_cells(chapter, folder, **changes)
    assert "\n" not in str(refused.value)
    assert not any((folder / chapter / made).exists() for made in ("runs", "stages"))
