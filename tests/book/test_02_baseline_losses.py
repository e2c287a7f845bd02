"""Chapter 2: a row per method and replicate, table, claims and figures, every loss searched."""

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from dmlkit.results import read_row, read_scores
from tests.book.executing import REFERENCES, whole_rows
from tests.official_trees import make_tree

ROOT = Path(__file__).parents[2]
CHAPTER = "02_baseline_losses"
METHODS = [
    *("contrastive", "triplet_semihard", "margin"),
    *("multi_similarity", "proxy_anchor", "norm_softmax"),
]


def test_every_method_leaves_a_row_per_replicate_with_all_columns(smoke):
    rows = whole_rows(smoke / CHAPTER)
    assert set(zip(rows["method"], rows["seed"], strict=True)) == {
        (method, seed) for method in METHODS + REFERENCES for seed in (0, 1)
    }
    columns = (
        "run_id chapter method dataset protocol fold seed params metric_recall_at_1 "
        "metric_map_at_r metric_map_at_r_last metric_r_precision steps images_seen seconds "
        "peak_mib device threads precision code commit versions data_fingerprint"
    )
    assert set(columns.split()) <= set(rows.columns)
    assert rows.notna().all().all()
    in_table = pd.read_csv(smoke / CHAPTER / "runs.csv")["run_id"]
    assert in_table.is_unique and set(in_table) == set(rows["run_id"])
    metrics = rows.filter(like="metric_")
    assert ((metrics >= 0) & (metrics <= 1)).all().all()


def test_trained_rows_say_how_much_they_trained_and_references_that_they_did_not(smoke):
    rows = pd.read_csv(smoke / CHAPTER / "runs.csv").set_index("method")
    assert (rows.loc[METHODS, "steps"] == 12).all()
    assert (rows.loc[METHODS, "images_seen"] == 12 * 16).all()
    assert rows.loc[METHODS, "selected_step"].isin([6, 12]).all()
    assert (rows.loc[REFERENCES, "steps"] == 0).all()


def test_the_table_shows_the_means_of_the_rows(smoke):
    rows = pd.read_csv(smoke / CHAPTER / "runs.csv")
    table = pd.read_csv(smoke / CHAPTER / "tables" / "main.csv", index_col="method")
    assert list(table.index) == REFERENCES + METHODS
    for method, shown in table["MAP@R"].items():
        expected = 100 * rows.loc[rows["method"] == method, "metric_map_at_r"].mean()
        assert float(shown.split(" [")[0]) == pytest.approx(expected, abs=0.055)
    assert (table["n"] == 2).all()


def test_claims_compare_the_rows_and_are_marked_as_demonstrations(smoke):
    rows = pd.read_csv(smoke / CHAPTER / "runs.csv").set_index(["method", "seed"])
    claims = pd.read_csv(smoke / CHAPTER / "claims.csv").set_index("claim")
    recall = rows["metric_recall_at_1"]
    expected = (recall["multi_similarity"] - recall["contrastive"]).mean()
    assert claims.loc["B1a", "difference"] == pytest.approx(expected, abs=4e-5)
    assert claims["verdict"].str.endswith("(demonstration)").all()
    assert (claims["n"] == 2).all()


def test_results_by_class_average_to_the_rows(smoke):
    for path in (smoke / CHAPTER / "runs").glob("*.json"):
        row = read_row(path)
        scores = read_scores(path.with_suffix(".npz"))
        for metric in ("recall_at_1", "r_precision", "map_at_r"):
            mean = np.average(scores[metric], weights=scores["queries"])
            assert mean == pytest.approx(row[f"metric_{metric}"], abs=2e-5)  # kept in 16 bits
        assert scores["queries"].sum() == row["num_queries"]


def test_figures_are_drawn_and_stand_in_the_executed_notebook(smoke):
    figures = {path.name for path in (smoke / CHAPTER / "figures").iterdir()}
    plots = {f"{name}.png" for name in ("gradients", "learning_curves", "umap")}
    pictures = {"neighbours.jpg", "test_classes.jpg"}
    assert figures == plots | pictures
    notebook = nbformat.read(smoke / CHAPTER / "chapter.ipynb", as_version=4)
    shown = [o for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    for kind, kept in (("png", plots), ("jpeg", pictures)):
        assert sum(f"image/{kind}" in output["data"] for output in shown) == len(kept)
    assert not any(o.output_type == "error" for c in notebook.cells for o in c.get("outputs", []))


def test_every_loss_is_searched_and_trained_and_folds_are_joined(tmp_path, run_dmlkit):
    overrides = {
        "METHODS": "[all, contrastive_concatenated]",
        "REFERENCES": "[frozen_trunk]",
        "SELECTION": "last",
        "BATCH_SIZE": 8,  # two of a class then need four of the seven classes of a fold
        "SEARCH_TRIALS": 2,
        "SEARCH_FOLDS": 1,
        "STEPS": 4,
        "MEASURE_EVERY": 2,
        "SEEDS": "[0]",
    }
    options = [word for name, value in overrides.items() for word in ("-p", name, str(value))]
    finished = run_dmlkit(
        "run",
        CHAPTER,
        "--profile",
        "smoke",
        "--results-dir",
        tmp_path,
        "--workers",
        "1",
        *options,
    )
    assert finished.returncode == 0, finished.stderr
    rows = whole_rows(tmp_path / CHAPTER).set_index("method")
    files = (ROOT / "dmlkit" / "losses").glob("[a-z]*.py")
    every = {path.stem for path in files} - {"proxies", "masked_sums"}  # no losses
    every -= {"sampled_norm_softmax", "self_supervised_ranking", "swav"}  # of other chapters
    every -= {"similarity_distribution", "similarity_cross_entropy"}
    for loss in every:
        assert any(name.startswith(loss) for name in rows.index), loss
    for method, row in rows.drop("frozen_trunk").iterrows():
        own = row["params"]
        search = json.loads(
            next(
                (tmp_path / CHAPTER / "searches").glob(
                    f"{method.removesuffix('_concatenated')}-seed0-*.json"
                )
            ).read_text()
        )
        assert len(search["trials"]) == 2
        tried = [(max(t["scores"].values()), t["settings"]) for t in search["trials"]]
        chosen = max(tried, key=lambda trial: trial[0])[1]
        assert {name: own[name] for name in chosen} == chosen
        if method != "contrastive_concatenated":
            assert row["selected_step"] == own["CHOSEN_STEP"]
    table = pd.read_csv(tmp_path / CHAPTER / "tables" / "search.csv", index_col="method")
    assert len(table) == len(rows) - 2  # but the frozen trunk and the joined models
    assert (table["best"] >= table["half as many"]).all()
    assert (
        table.loc["contrastive", "of the loss"] == "–" != table.loc["norm_softmax", "of the loss"]
    )
    steps = pd.read_csv(tmp_path / CHAPTER / "tables" / "steps.csv", index_col="method")
    assert (steps["optimism"].dropna() >= 0).all()
    order = pd.read_csv(tmp_path / CHAPTER / "tables" / "stability.csv")
    assert order["Kendall's tau"].between(-1, 1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "methods", "recall_at"),
    [("cub200_2011", ["multi_similarity"], "[1,2,4]"), ("in_shop", ["norm_softmax"], "[1,2]")],
)
def test_the_paper_profile_executes_on_generated_trees_and_says_that_it_was_not_run(
    run_dmlkit, tmp_path, dataset, methods, recall_at
):
    make_tree(dataset, tmp_path / "data", num_classes=8, images_per_class=5)
    changes = {
        **{"DATASET": dataset, "DATA_DIR": tmp_path / "data", "WEIGHTS": "none", "SEEDS": "[0]"},
        **{"STEPS": 2, "BATCH_SIZE": 10, "RECALL_AT": recall_at, "METHODS": json.dumps(methods)},
        **{"REFERENCES": '["frozen_trunk"]'},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, value)]
    folder = tmp_path / "results"
    finished = run_dmlkit("run", CHAPTER, "--profile", "paper", "--results-dir", folder, *arguments)
    assert finished.returncode == 0, finished.stderr
    table = (folder / CHAPTER / "tables" / "main.md").read_text()
    assert all(f"| {method} |" in table for method in ["frozen_trunk", *methods])
    assert "**Not run: random images in the layout of the data set.**" in table
    assert "No claim is judged" in (folder / "index.html").read_text()
    assert whole_rows(folder / CHAPTER)["data_fingerprint"].str.startswith("generated-").all()
