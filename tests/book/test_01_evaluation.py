"""Chapter 1: older rules, protocols, which published differences can be resolved."""

import pandas as pd
import pytest

from tests.official_trees import make_tree

CHAPTER = "01_evaluation"


def test_the_chapter_on_evaluation_shows_what_older_rules_make_of_plain_cases(smoke):
    rules = pd.read_csv(smoke / CHAPTER / "tables" / "rules.csv", index_col="rule")
    # Three classes of four at one point; five of ten apart; 40 images twice under other labels.
    assert rules.loc["Recall@1, this book"].tolist() == [0, 100, 0]
    assert rules.loc["MAP@R, this book"].round(0).tolist() == [0, 100, 1]
    tied = rules.loc["Recall@1, identity subtracted, ties right"]
    assert tied.tolist() == [100, 100, 0]
    assert rules.loc["Recall@1, best of the class dropped, ties right", "collapsed"] == 100
    # 9 of 10 right ones among the first 10, and the tenth place cannot be filled.
    assert rules.loc["MAP@R, R counts the query", "perfect"] == 90
    assert rules.loc["Recall@1, first neighbour dropped", "doubled"] > 0


def test_the_chapter_on_evaluation_scores_each_replicate_by_all_protocols(smoke):
    rows = pd.read_csv(smoke / CHAPTER / "runs.csv")
    assert set(zip(rows["method"], rows["seed"], strict=True)) == {
        (method, seed) for method in ("frozen_trunk", "norm_softmax") for seed in (0, 1)
    }
    assert rows.notna().all().all()
    table = pd.read_csv(smoke / CHAPTER / "tables" / "protocols.csv")
    trained = rows[rows["method"] == "norm_softmax"]
    assert table.loc[0, "%"] == pytest.approx(100 * trained["metric_recall_at_1"].mean(), abs=0.06)
    shown = table.set_index("protocol")["%"]
    expected = 100 * trained["metric_nmi_geometric"].mean()
    assert shown["geometric mean, best of 10 restarts"] == pytest.approx(expected, abs=0.06)
    ties = trained["metric_recall_at_1_binary_ties_right"] >= trained["metric_recall_at_1_binary"]
    assert ties.all()


def test_the_chapter_on_evaluation_says_which_published_differences_can_be_resolved(smoke):
    tables = smoke / CHAPTER / "tables"
    detectable = pd.read_csv(tables / "detectable.csv", index_col=["profile", "metric"])
    assert (detectable.diff(axis=1).iloc[:, 1:] <= 0).all().all()  # more replicates show more
    power = pd.read_csv(tables / "power.csv", index_col="claim")
    assert power["size"].notna().all() and (power["size"] > 0).all()
    for claim in power[power["features"].str.startswith("n = ")].itertuples():
        row = detectable.loc[("features", claim.metric)]
        assert row[claim.features] <= claim.size + 0.01
    coverage = pd.read_csv(tables / "coverage.csv", index_col=["replicates", "n"])
    assert coverage.shape == (9, 3) and ((coverage >= 0) & (coverage <= 100)).all().all()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["cub200_2011", "in_shop"])
def test_the_chapter_on_evaluation_executes_on_the_paper_profile(run_dmlkit, tmp_path, dataset):
    make_tree(dataset, tmp_path / "data", num_classes=8, images_per_class=5)
    changes = {
        **{"DATASET": dataset, "DATA_DIR": tmp_path / "data", "WEIGHTS": "none", "SEEDS": "[0]"},
        **{"STEPS": 2, "BATCH_SIZE": 10, "RECALL_AT": "[1,2]", "SIMULATIONS": 2},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, value)]
    folder = tmp_path / "results"
    arguments = ["--profile", "paper", "--results-dir", folder, *arguments]
    finished = run_dmlkit("run", CHAPTER, *arguments)
    assert finished.returncode == 0, finished.stderr
    table = (folder / CHAPTER / "tables" / "protocols.md").read_text()
    assert "**Not run: random images in the layout of the data set.**" in table
