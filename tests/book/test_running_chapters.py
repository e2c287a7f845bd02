"""The chapters through the real runner and stock papermill: what is kept, resumed and refused."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.book.executing import REFERENCES

ROOT = Path(__file__).parents[2]
EVALUATION = "01_evaluation"
BASELINE_LOSSES = "02_baseline_losses"
NORM_SOFTMAX = "03_norm_softmax"
RANKING = "04_self_supervised_ranking"
SLADE = "05_slade"
ABLATIONS = "06_slade_ablations"


def metric_columns(folder):
    rows = pd.read_csv(folder / BASELINE_LOSSES / "runs.csv")
    return rows.filter(regex="^(method|seed|metric_|selected_step)")


@pytest.mark.parametrize(
    "chapter", [EVALUATION, BASELINE_LOSSES, NORM_SOFTMAX, RANKING, SLADE, ABLATIONS]
)
def test_the_executed_notebook_shows_no_warning_and_no_path_of_this_machine(smoke, chapter):
    path = smoke / chapter / "chapter.ipynb"
    assert str(ROOT) not in path.read_text()
    outputs = [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]
    said = [o.text for o in outputs if o.get("name") == "stderr" and "Warning" in o.text]
    assert not said


def test_the_index_page_shows_tables_claims_and_figures(smoke):
    page = (smoke / "index.html").read_text()
    for expected in (BASELINE_LOSSES, "multi_similarity", "umap.png", "B1a", "demonstration"):
        assert expected in page


def test_running_again_makes_nothing_anew(smoke, run_dmlkit):
    before = {p: p.stat().st_mtime_ns for p in (smoke / BASELINE_LOSSES).rglob("*") if p.is_file()}
    finished = run_dmlkit("run", "--profile", "smoke", "--results-dir", smoke)
    assert finished.returncode == 0, finished.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.slow
def test_stock_papermill_from_another_folder_gives_the_same_numbers(smoke, tmp_path):
    profiles = ROOT / "book" / "profiles"
    command = [
        sys.executable,
        "-m",
        "papermill",
        ROOT / "book" / f"{BASELINE_LOSSES}.ipynb",
        "out.ipynb",
    ]
    command += ["-f", profiles / "smoke.yaml", "-f", profiles / "smoke" / f"{BASELINE_LOSSES}.yaml"]
    command += ["-p", "RESULTS_DIR", tmp_path / "results"]
    finished = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    pd.testing.assert_frame_equal(metric_columns(tmp_path / "results"), metric_columns(smoke))


@pytest.mark.slow
def test_a_failing_chapter_ends_in_one_sentence(run_dmlkit, tmp_path):
    arguments = ["--profile", "smoke", "--results-dir", tmp_path, "-p", "LEARNING_RATE", "1e30"]
    finished = run_dmlkit("run", BASELINE_LOSSES, *arguments)
    assert finished.returncode == 1
    said = [line for line in finished.stderr.splitlines() if line.startswith("dmlkit: ")]
    assert len(said) == 1 and "the loss is nan at step" in said[0]
    assert not (tmp_path / BASELINE_LOSSES / "chapter.ipynb").exists()


@pytest.mark.slow
def test_a_readers_own_few_images_and_one_replicate_run_to_the_end(
    run_dmlkit, tmp_path, class_tree
):
    changes = {
        **{"DATASET": "class_folder", "DATA_DIR": class_tree, "SEEDS": "[7]", "SELECTION": "last"},
        **{"MAX_CLASSES": 0, "RECALL_AT": "[1,2]", "METHODS": "[multi_similarity]"},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, value)]
    folder = tmp_path / "results"
    # Without those on SLADE, which ask for a POOL_SHARE of more classes than a few.
    chapters = (EVALUATION, BASELINE_LOSSES, NORM_SOFTMAX, RANKING)
    finished = run_dmlkit(
        "run", *chapters, "--profile", "smoke", "--results-dir", folder, *arguments
    )
    assert finished.returncode == 0, finished.stderr
    # METHODS is no parameter of the first chapter, which runs as it is.
    assert set(pd.read_csv(folder / BASELINE_LOSSES / "runs.csv")["method"]) == {
        "multi_similarity",
        *REFERENCES,
    }
    assert (folder / EVALUATION / "tables" / "protocols.md").exists()
    assert "No claim is judged" in (folder / "index.html").read_text()
    assert (folder / BASELINE_LOSSES / "pictures" / "neighbours.jpg").exists()
    assert not (folder / BASELINE_LOSSES / "figures" / "neighbours.jpg").exists()
