"""Chapter 4: every arm of the ranking task, its changes and its search."""

import json

import pandas as pd
import pytest

from dmlkit.results import read_row
from tests.book.executing import REFERENCES
from tests.official_trees import make_tree

CHAPTER = "04_self_supervised_ranking"


def test_every_arm_and_point_of_the_ranking_task_trains_in_its_own_way(smoke):
    losses = {}
    for path in (smoke / CHAPTER / "runs").glob("*-seed0-*.json"):
        row = read_row(path)
        losses[row["method"]] = tuple(entry["loss"] for entry in row["history"])
        if row["method"].endswith("_longer"):
            assert row["steps"] == round(12 * (1 + 0.8 * 5 * 4 / 16))
    equal = "multi_similarity_ranking"
    defaults = ("terms_both", "head_own", "order_margin_0.05", "num_views_4", "view_families_all")
    assert all(losses.pop(f"{equal}_{default}") == losses[equal] for default in defaults)
    trained = [values for method, values in losses.items() if method not in REFERENCES]
    assert len(trained) == len(set(trained)) == 2 * 5 + 2 + 1 + 3 + 2 + 3


def test_the_ranking_chapter_shows_changes_orders_and_similarities(smoke):
    tables = smoke / CHAPTER / "tables"
    rows = pd.read_csv(smoke / CHAPTER / "runs.csv").groupby("method").mean(numeric_only=True)
    changes = pd.read_csv(tables / "changes.csv", index_col=["loss", "arm", "metric"])
    assert len(changes) == 2 * 4 * 3
    gain = rows.loc["margin_shuffled", "metric_map_at_r"] - rows.loc["margin", "metric_map_at_r"]
    found = changes.loc[("margin", "shuffled", "MAP@R")]
    assert found["mean"] == pytest.approx(100 * gain, abs=0.009)
    assert found["low"] <= found["mean"] <= found["high"]
    order = pd.read_csv(tables / "order.csv", index_col="method")
    of_factors = order.drop(columns="order").mean(axis=1)
    assert of_factors.to_numpy() == pytest.approx(order["order"], abs=0.002)
    similarity = pd.read_csv(tables / "view_similarity.csv", index_col="method")
    assert similarity.columns[:4].tolist() == ["0.20", "0.38", "0.54", "0.66"]
    assert similarity.loc["frozen_trunk"].dropna().is_monotonic_decreasing
    change = similarity.loc["margin_ranking", "0.66"] - similarity.loc["margin", "0.66"]
    assert similarity.loc["margin_ranking", "change at 0.66"] == pytest.approx(change, abs=0.002)
    ablations = pd.read_csv(tables / "ablations.csv", index_col=["what", "value"])
    assert (ablations["MAP@R, change"] == "default").sum() == 5
    choices = pd.read_csv(tables / "choices.csv", index_col="what")["matters, MAP@R"]
    assert (
        choices["heads"].startswith("shared: ") and choices["floor beta"] == "not in this profile"
    )


@pytest.mark.slow
def test_the_ranking_task_acts_above_a_frozen_trunk_and_each_arm_is_searched(run_dmlkit, tmp_path):
    changes = {
        **{"METHODS": "[margin]", "SWEEPS": "[head]", "ABLATED": "margin", "SELECTION": "last"},
        **{"CACHED_VIEWS": 2, "REFERENCES": "[frozen_trunk]", "SEEDS": "[0]", "BATCH_SIZE": 8},
        **{"SEARCH_TRIALS": 2, "SEARCH_FOLDS": 1, "ARMS": "[ranking, positives]"},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, str(value))]
    arguments = ["--profile", "smoke", "--results-dir", tmp_path, *arguments]
    finished = run_dmlkit("run", CHAPTER, *arguments)
    assert finished.returncode == 0, finished.stderr
    searched = {
        path.name.split("-seed")[0]: json.loads(path.read_text())["trials"]
        for path in (tmp_path / CHAPTER / "searches").glob("*.json")
    }
    assert {name: len(trials) for name, trials in searched.items()} == {
        **{"margin": 2, "margin_ranking": 2, "margin_positives": 2},
        **{"margin_ranking_default": 1, "margin_ranking_head_shared": 1},
    }
    weights = [trial["settings"]["TASK_WEIGHT"] for trial in searched["margin_ranking"]]
    assert weights[0] == 0.8 and weights[1] != 0.8
    drawn = [
        searched[arm][1]["settings"] for arm in ("margin", "margin_ranking", "margin_positives")
    ]
    for name in ("LEARNING_RATE", "HEAD_RATE", "IMAGES_PER_CLASS", "margin", "TASK_WEIGHT"):
        assert len({settings[name] for settings in drawn}) == 1  # all arms try the same
    rows = pd.read_csv(tmp_path / CHAPTER / "runs.csv").set_index("method")
    kept = ["margin", "margin_ranking_head_own", "margin_ranking_head_shared"]
    assert rows.loc[kept, "metric_map_at_r"].nunique() == 3  # the task reaches the metric head
    assert rows["metric_similarity_to_view_4"].notna().all()


@pytest.mark.slow
def test_the_ranking_chapter_executes_on_the_paper_profile(run_dmlkit, tmp_path):
    make_tree("in_shop", tmp_path / "data", num_classes=8, images_per_class=5)  # with a gallery
    changes = {
        **{"DATASET": "in_shop", "DATA_DIR": tmp_path / "data", "WEIGHTS": "none", "SEEDS": "[0]"},
        **{"STEPS": 2, "BATCH_SIZE": 10, "IMAGES_PER_CLASS": 5, "RECALL_AT": "[1,2]"},
        **{"METHODS": "[multi_similarity]", "ARMS": "[ranking]", "SWEEPS": "[head]"},
        **{"REFERENCES": "[frozen_trunk]", "RANKED_IMAGES": 3},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, value)]
    folder = tmp_path / "results"
    finished = run_dmlkit("run", CHAPTER, "--profile", "paper", "--results-dir", folder, *arguments)
    assert finished.returncode == 0, finished.stderr
    table = (folder / CHAPTER / "tables" / "main.md").read_text()
    assert "| multi_similarity_ranking |" in table
    assert "**Not run: random images in the layout of the data set.**" in table
