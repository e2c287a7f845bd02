"""A chapter whose runs are shared by two processes, started by torchrun."""

import pandas as pd
import pytest

CHAPTER = "02_baseline_losses"
OPTIONS = ["run", CHAPTER, "--profile", "smoke", "--workers", "1", "--processes-per-run", "2"]


def of(folder, *parameters):
    """Return arguments of the command that fill rows of two methods in a folder."""
    given = ["-p", "METHODS", "[margin,norm_softmax]", "-p", "REFERENCES", "[frozen_trunk]"]
    return [*OPTIONS, "--results-dir", folder, "-p", "SEEDS", "[0]", *given, *parameters]


@pytest.fixture(scope="module")
def rows(tmp_path_factory, run_dmlkit):
    folder = tmp_path_factory.mktemp("shared")
    finished = run_dmlkit(*of(folder))
    assert finished.returncode == 0, finished.stderr
    return folder / CHAPTER


@pytest.mark.slow
def test_processes_fill_rows_that_the_notebook_then_shows(rows):
    table = pd.read_csv(rows / "runs.csv")
    assert list(table["method"]) == ["frozen_trunk", "margin", "norm_softmax"]
    assert set(table["device"]) == {"2 x cpu"}  # the notebook has made none itself
    trained = table[table["method"] != "frozen_trunk"]
    assert list(trained["images_seen"]) == [12 * 16] * 2
    assert (rows / "chapter.ipynb").exists()
    log = (rows / "logs" / "seed0.log").read_text()
    assert log.count("margin, seed 0:   0%") == 1  # one of them shows progress


@pytest.mark.slow
def test_what_needs_no_training_is_as_with_one_process(rows, smoke):
    for_one = pd.read_csv(smoke / CHAPTER / "runs.csv").set_index(["method", "seed"])
    for_two = pd.read_csv(rows / "runs.csv").set_index(["method", "seed"])
    found = for_two.loc["frozen_trunk", 0].filter(like="metric_").astype(float)
    wanted = for_one.loc["frozen_trunk", 0].filter(like="metric_").astype(float)
    pd.testing.assert_series_equal(found, wanted[found.index], atol=1e-6)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_ends_in_one_sentence(tmp_path, run_dmlkit):
    odd = ["-p", "BATCH_SIZE", "15", "-p", "IMAGES_PER_CLASS", "3"]
    finished = run_dmlkit(*of(tmp_path, *odd))
    assert finished.returncode == 1
    said = finished.stderr.splitlines()[-1]
    assert said.endswith(
        "batches of 15 images cannot be shared equally by 2 processes; let BATCH_SIZE be a "
        "multiple of their number"
    )
    assert not list(tmp_path.glob("*/runs/m*.json"))
