"""The chapters executed on the smoke profile, through the real runner and stock papermill."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torchvision.models import resnet50

from dmlkit.chapters import chapter_parameters, chapter_source, read_notebook, up_to_runs
from dmlkit.results import read_row, read_scores
from tests.official_trees import make_tree

ROOT = Path(__file__).parents[1]
CHAPTER = "02_baseline_losses"
EVALUATION = "01_evaluation"
NORM_SOFTMAX = "03_norm_softmax"
RANKING = "04_self_supervised_ranking"
SLADE = "05_slade"
ABLATIONS = "06_slade_ablations"
METHODS = [
    *("contrastive", "triplet_semihard", "margin"),
    *("multi_similarity", "proxy_anchor", "norm_softmax"),
]
REFERENCES = ["frozen_trunk", "colour_histogram", "raw_pixels", "pca", "within_class_whitening"]


def metric_columns(folder):
    rows = pd.read_csv(folder / CHAPTER / "runs.csv")
    return rows.filter(regex="^(method|seed|metric_|selected_step)")


def whole_rows(folder):
    """Return all that JSON holds of the runs of a chapter."""
    return pd.DataFrame([read_row(path) for path in (folder / "runs").glob("*.json")])


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


@pytest.mark.parametrize("chapter", [EVALUATION, CHAPTER, NORM_SOFTMAX, RANKING, SLADE, ABLATIONS])
def test_the_executed_notebook_shows_no_warning_and_no_path_of_this_machine(smoke, chapter):
    path = smoke / chapter / "chapter.ipynb"
    assert str(ROOT) not in path.read_text()
    outputs = [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]
    said = [o.text for o in outputs if o.get("name") == "stderr" and "Warning" in o.text]
    assert not said


def test_the_index_page_shows_tables_claims_and_figures(smoke):
    page = (smoke / "index.html").read_text()
    for expected in (CHAPTER, "multi_similarity", "umap.png", "B1a", "demonstration"):
        assert expected in page


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
        "run", CHAPTER, "--profile", "smoke", "--results-dir", tmp_path, "--workers", "1", *options
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


def test_running_again_makes_nothing_anew(smoke, run_dmlkit):
    before = {p: p.stat().st_mtime_ns for p in (smoke / CHAPTER).rglob("*") if p.is_file()}
    finished = run_dmlkit("run", "--profile", "smoke", "--results-dir", smoke)
    assert finished.returncode == 0, finished.stderr
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_the_chapter_on_evaluation_shows_what_older_rules_make_of_plain_cases(smoke):
    rules = pd.read_csv(smoke / EVALUATION / "tables" / "rules.csv", index_col="rule")
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
    rows = pd.read_csv(smoke / EVALUATION / "runs.csv")
    assert set(zip(rows["method"], rows["seed"], strict=True)) == {
        (method, seed) for method in ("frozen_trunk", "norm_softmax") for seed in (0, 1)
    }
    assert rows.notna().all().all()
    table = pd.read_csv(smoke / EVALUATION / "tables" / "protocols.csv")
    trained = rows[rows["method"] == "norm_softmax"]
    assert table.loc[0, "%"] == pytest.approx(100 * trained["metric_recall_at_1"].mean(), abs=0.06)
    shown = table.set_index("protocol")["%"]
    expected = 100 * trained["metric_nmi_geometric"].mean()
    assert shown["geometric mean, best of 10 restarts"] == pytest.approx(expected, abs=0.06)
    ties = trained["metric_recall_at_1_binary_ties_right"] >= trained["metric_recall_at_1_binary"]
    assert ties.all()


def test_the_chapter_on_evaluation_says_which_published_differences_can_be_resolved(smoke):
    tables = smoke / EVALUATION / "tables"
    detectable = pd.read_csv(tables / "detectable.csv", index_col=["profile", "metric"])
    assert (detectable.diff(axis=1).iloc[:, 1:] <= 0).all().all()  # more replicates show more
    power = pd.read_csv(tables / "power.csv", index_col="claim")
    assert power["size"].notna().all() and (power["size"] > 0).all()
    for claim in power[power["features"].str.startswith("n = ")].itertuples():
        row = detectable.loc[("features", claim.metric)]
        assert row[claim.features] <= claim.size + 0.01
    coverage = pd.read_csv(tables / "coverage.csv", index_col=["replicates", "n"])
    assert coverage.shape == (9, 3) and ((coverage >= 0) & (coverage <= 100)).all().all()


def test_every_sweep_of_norm_softmax_is_run_and_only_equal_points_are_equal(smoke):
    rows = whole_rows(smoke / NORM_SOFTMAX).set_index(["method", "seed"]).sort_index()
    methods = set(rows.index.get_level_values("method"))
    for sweep in ("layer_norm", "images_per_class", "temperature", "dimension"):
        points = [name for name in methods if name.startswith(f"norm_softmax_{sweep}_")]
        assert len({name.removesuffix("_binary") for name in points}) == 2, sweep
        assert sweep == "layer_norm" or (smoke / NORM_SOFTMAX / "figures" / f"{sweep}.png").exists()
    metrics = rows[["metric_recall_at_1", "metric_map_at_r", "metric_recall_at_1_last"]]
    default = metrics.loc["norm_softmax"]
    for point in ("temperature_0.05", "class_share_1.0", "class_share_corrected_1.0"):
        pd.testing.assert_frame_equal(metrics.loc[f"norm_softmax_{point}"], default)
    pd.testing.assert_frame_equal(
        metrics.loc["norm_softmax_layer_norm_on_binary"], metrics.loc["norm_softmax_binary"]
    )
    files = (smoke / NORM_SOFTMAX / "runs").glob("norm_softmax*.json")
    losses = {}
    for path in files:
        row = read_row(path)
        losses[row["method"], row["seed"]] = [entry["loss"] for entry in row["history"]]
    others = ("temperature_0.2", "class_share_0.75", "class_share_corrected_0.75")
    others += ("layer_norm_off", "images_per_class_random", "dimension_8", "mobilenet_v2_8")
    found = [losses[f"norm_softmax_{point}", 0] for point in others]
    assert losses["norm_softmax", 0] not in found
    assert len({tuple(values) for values in found}) == len(others)
    of_runs = whole_rows(smoke / NORM_SOFTMAX).set_index("method")["params"]
    for params in of_runs["norm_softmax_class_share_0.75"]:
        assert params["num_sampled"] == 6  # of 8 training classes


def test_bits_stand_beside_floats_and_between_the_bounds_of_their_ties(smoke):
    rows = pd.read_csv(smoke / NORM_SOFTMAX / "runs.csv").set_index("method")
    bits = rows[rows.index.str.endswith("_binary")]
    assert set(bits.index.str.removesuffix("_binary")) <= set(rows.index)
    expected = bits["metric_recall_at_1"]
    assert (bits["metric_recall_at_1_worst"] <= expected).all()
    assert (expected <= bits["metric_recall_at_1_best"]).all()
    crossed = pd.read_csv(smoke / NORM_SOFTMAX / "tables" / "trunks.csv", index_col=[0, 1])
    assert crossed.notna().all().all()
    assert set(crossed.index.get_level_values(0)) == {"small_convnet", "mobilenet_v2"}
    shown = pd.read_csv(smoke / NORM_SOFTMAX / "tables" / "layer_norm.csv", index_col="method")
    floats = shown[~shown.index.str.endswith("_binary")]  # bits are not validated
    assert len(floats) == 10 and floats["steps to 90% of it"].notna().all()


def test_each_loss_has_its_own_head_unless_the_sweep_says_otherwise(smoke):
    rows = whole_rows(smoke / NORM_SOFTMAX).set_index(["method", "seed"]).sort_index()
    heads = {key: params.get("LAYER_NORM") for key, params in rows["params"].items()}
    assert heads["norm_softmax", 0] and not heads["multi_similarity", 0]
    metrics = rows[["metric_recall_at_1", "metric_map_at_r"]]
    for loss, own, other in (("norm_softmax", "on", "off"), ("proxy_anchor", "off", "on")):
        assert heads[f"{loss}_layer_norm_on", 0] and not heads[f"{loss}_layer_norm_off", 0]
        same, changed = (metrics.loc[f"{loss}_layer_norm_{head}"] for head in (own, other))
        pd.testing.assert_frame_equal(same, metrics.loc[loss])
        assert (changed["metric_map_at_r"] != same["metric_map_at_r"]).any()


@pytest.mark.slow
def test_points_of_a_sweep_keep_the_defaults_and_search_their_steps_alone(run_dmlkit, tmp_path):
    changes = {
        **{"METHODS": "[norm_softmax]", "SWEEPS": "[temperature]", "SELECTION": "last"},
        **{"REFERENCES": "[frozen_trunk]", "SEARCH_TRIALS": 3, "SEARCH_FOLDS": 1},
        # As many steps as let each replicate have a worker of its own.
        **{"BATCH_SIZE": 8, "STEPS": 100, "MEASURE_EVERY": 50, "SEEDS": "[0, 1]"},
        "OTHER_TRUNKS": '["small_convnet none torchvision"]',  # of a sweep that is not run
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, str(value))]
    finished = run_dmlkit(
        "run", NORM_SOFTMAX, "--profile", "smoke", "--results-dir", tmp_path, *arguments
    )
    assert finished.returncode == 0, finished.stderr
    rows = whole_rows(tmp_path / NORM_SOFTMAX)
    rows = rows[rows["seed"] == 1].set_index("method")
    params = rows["params"]
    (searched,) = (tmp_path / NORM_SOFTMAX / "searches").glob("norm_softmax-seed1-*.json")
    trials = json.loads(searched.read_text())["trials"]
    assert len(trials) == 3
    best = max(trials, key=lambda trial: max(trial["scores"].values()))["settings"]
    for name in ("LEARNING_RATE", "LOSS_LR", "temperature", "IMAGES_PER_CLASS"):
        assert params["norm_softmax"][name] == best[name]
    for value in (0.05, 0.2):
        point = params[f"norm_softmax_temperature_{value}"]
        (searched,) = (tmp_path / NORM_SOFTMAX / "searches").glob(f"*_{value}-seed1-*.json")
        (trial,) = json.loads(searched.read_text())["trials"]
        assert trial["settings"]["temperature"] == point["temperature"] == value
        assert (point["LEARNING_RATE"], point["IMAGES_PER_CLASS"]) == (0.001, 4)
        assert (
            point["CHOSEN_STEP"] == rows.loc[f"norm_softmax_temperature_{value}", "selected_step"]
        )


def test_every_arm_and_point_of_the_ranking_task_trains_in_its_own_way(smoke):
    losses = {}
    for path in (smoke / RANKING / "runs").glob("*-seed0-*.json"):
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
    tables = smoke / RANKING / "tables"
    rows = pd.read_csv(smoke / RANKING / "runs.csv").groupby("method").mean(numeric_only=True)
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
    finished = run_dmlkit("run", RANKING, *arguments)
    assert finished.returncode == 0, finished.stderr
    searched = {
        path.name.split("-seed")[0]: json.loads(path.read_text())["trials"]
        for path in (tmp_path / RANKING / "searches").glob("*.json")
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
    rows = pd.read_csv(tmp_path / RANKING / "runs.csv").set_index("method")
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
    finished = run_dmlkit("run", RANKING, "--profile", "paper", "--results-dir", folder, *arguments)
    assert finished.returncode == 0, finished.stderr
    table = (folder / RANKING / "tables" / "main.md").read_text()
    assert "| multi_similarity_ranking |" in table
    assert "**Not run: random images in the layout of the data set.**" in table


def all_rows(folder):
    """Return every row of a chapter, history included, by method and seed."""
    found = [read_row(path) for path in (folder / "runs").glob("[!.]*.json")]
    return {(row["method"], row["seed"]): row for row in found}


def curve(row):
    return tuple(entry["loss"] for entry in row["history"])


def metrics_of(row):
    return {name: value for name, value in row.items() if name.startswith("metric_")}


SLADE_ARMS = ["teacher", "student", "longer", "labelled_pool", "clusters", "shuffled", "oracle"]
# The controls are those of the first start.
SINGLE = [f"contrastive_{arm}" for arm in SLADE_ARMS]
SINGLE += ["swav_contrastive_teacher", "swav_contrastive_student"]
JOINED = [f"{name}_concatenated" for name in SINGLE if name.endswith(("_teacher", "_student"))]


def test_every_arm_of_slade_trains_in_its_own_way(smoke):
    rows = all_rows(smoke / SLADE)
    every = SINGLE + JOINED
    assert set(rows) == {(m, s) for m in [*every, *REFERENCES, "swav_trunk"] for s in (0, 1)}
    for seed in (0, 1):
        assert len({curve(rows[method, seed]) for method in every}) == len(every)
        for method in every:
            row = rows[method, seed]
            size = 8 if "_teacher" in method else 16  # with half a batch of the pool, or as many
            assert (row["steps"], row["images_seen"]) == (12, 12 * size), method
            assert row["params"]["START"] == ("swav" if method.startswith("swav") else "given")


def test_pseudo_labels_are_true_at_the_ceiling_and_chance_where_they_are_shuffled(smoke):
    rows = all_rows(smoke / SLADE)
    names = ("clusters", "purity", "nmi", "ami")
    by_chance = []
    for seed in (0, 1):
        told = {
            arm: {name: rows[f"contrastive_{arm}", seed][f"metric_pseudo_{name}"] for name in names}
            for arm in SLADE_ARMS
            if arm not in ("teacher", "longer")
        }
        assert told["oracle"] == {"clusters": 8, "purity": 1, "nmi": 1, "ami": 1}
        assert told["student"] == told["clusters"]  # of the same teacher
        assert told["labelled_pool"] != told["clusters"]
        assert told["shuffled"]["clusters"] == 6
        assert told["shuffled"]["purity"] < told["clusters"]["purity"]
        by_chance.append(told["shuffled"]["ami"])
        for arm in ("teacher", "longer"):
            assert "metric_pseudo_ami" not in rows[f"contrastive_{arm}", seed]
    assert abs(np.mean(by_chance)) < 0.15
    table = pd.read_csv(smoke / SLADE / "tables" / "pseudo_labels.csv", index_col="method")
    assert list(table.index) == [name for name in SINGLE + JOINED if "_student" in name]
    assert (table["k / classes"] == 6 / 8).all()
    mean = np.mean([rows["swav_contrastive_student", seed]["metric_pseudo_ami"] for seed in (0, 1)])
    assert table.loc["swav_contrastive_student", "AMI"] == pytest.approx(mean, abs=6e-4)


def test_joined_models_have_a_quarter_of_the_dimensions_each_and_share_one_swav_trunk(smoke):
    rows = all_rows(smoke / SLADE)
    for method in SINGLE + JOINED:
        (path,) = (smoke / SLADE / "embeddings").glob(f"{method}-seed0-*.npy")
        embeddings = np.load(path).astype(np.float32)
        assert embeddings.shape == (rows[method, 0]["num_queries"], 16)
        if method in JOINED:  # four vectors of one length side by side
            parts = np.linalg.norm(embeddings.reshape(-1, 4, 16 // 4), axis=2)
            assert parts == pytest.approx(0.5, abs=1e-3)
    stages = [path.name.rpartition("-seed")[0] for path in (smoke / SLADE / "stages").glob("*.pt")]
    of_folds = [name for name in stages if "_fold" in name]
    assert stages.count("swav") == 2 and len(set(of_folds)) == 2 * 2 * 4
    assert all(stages.count(name) == 2 for name in set(stages))  # one per replicate


def test_the_slade_chapter_shows_changes_swav_and_what_was_published(smoke):
    tables, rows = smoke / SLADE / "tables", all_rows(smoke / SLADE)

    def mean(method, metric="map_at_r"):
        return np.mean([rows[method, seed][f"metric_{metric}"] for seed in (0, 1)])

    changes = pd.read_csv(tables / "changes.csv", index_col=["teacher", "arm", "metric"])
    assert len(changes) == (6 + 1 + 2) * 3
    for (teacher, arm, metric), found in changes.iterrows():
        name = {"MAP@R": "map_at_r", "RP": "r_precision", "R@1": "recall_at_1"}[metric]
        gain = mean(teacher.replace("teacher", arm), name) - mean(teacher, name)
        assert found["mean"] == pytest.approx(100 * gain, abs=0.009)
        assert found["low"] <= found["mean"] <= found["high"]
    assert mean("swav_trunk") != mean("frozen_trunk")
    swav = pd.read_csv(tables / "swav.csv", index_col="step")
    assert swav["relative_loss"].to_numpy() == pytest.approx(swav["loss"] / math.log(8), abs=1e-3)
    assert swav["prototypes_used"].between(1 / 8, 1).all()
    assert swav["usage_entropy"].between(0, 1).all() and (swav["relative_loss"] > 0).all()
    published = pd.read_csv(tables / "published.csv", index_col="method")
    lines = published.index.tolist()
    ours = {"contrastive": (1, 2), "multi_similarity": (3, 4)}
    for loss, numbers in ours.items():
        for start, number in zip(("", "swav_"), numbers, strict=True):
            teacher = f"{'MS' if loss == 'multi_similarity' else 'Contrastive'} T{number}"
            for theirs, arm in ((teacher, "teacher"), (f"SLADE S{number}", "student")):
                method = f"{start}{loss}_{arm}"
                place = lines.index(theirs)
                assert lines[place + 1] == method
                if loss == "contrastive":
                    assert lines[place + 2] == f"{method}_concatenated"
                    for name in lines[place + 1 : place + 3]:
                        shown = float(published.loc[name, "MAP@R"])
                        assert shown == pytest.approx(100 * mean(name), abs=0.055)


# What agrees in the ablations, and why; all other points train in their own way.
SAME = [
    {"components_basis", "mining_cluster"},  # one point of two sweeps
    # A share of 0.75 of 8 classes is 6, NUM_CLUSTERS; and no class of this profile's pool has more
    # images than the median one, so there is nothing to balance.
    {"student", "clusters_0.75", "pool_balance_unbalanced", "pool_balance_nearly_balanced"},
    # Whose sweeps begin with the full gradient.
    {
        *("gradient_full", "similarity_loss_distribution_full"),
        *("margin_0.5", "variance_weight_1.0"),
    },
]


def test_every_point_of_the_slade_ablations_trains_in_its_own_way(smoke):
    rows = {method: row for (method, _), row in all_rows(smoke / ABLATIONS).items()}
    trained = {method: row for method, row in rows.items() if row["history"]}
    assert set(rows) - set(trained) == set(REFERENCES)
    alike = {}
    for method, row in trained.items():
        alike.setdefault(str([*curve(row), *metrics_of(row).values()]), set()).add(method)
    assert all(same in alike.values() for same in SAME)
    assert sum(len(methods) > 1 for methods in alike.values()) == len(SAME)
    for share in (0.75, 1.0):
        assert rows[f"clusters_{share}"]["metric_pseudo_clusters"] == round(share * 8)
    for rounds in (2, 3):
        row = rows[f"rounds_{rounds}"]
        assert (row["steps"], row["images_seen"]) == (12 * rounds, 12 * rounds * 16)


def test_every_sweep_of_the_slade_ablations_is_shown_and_what_changes_nothing_has_no_row(smoke):
    folder, rows = smoke / ABLATIONS, all_rows(smoke / ABLATIONS)
    profile = yaml.safe_load((ROOT / "book/profiles/smoke" / f"{ABLATIONS}.yaml").read_text())
    choices = pd.read_csv(folder / "tables" / "choices.csv", dtype=str)
    shown = {
        sweep: choices[choices["choice"] == sweep].set_index("value")
        for sweep in choices["choice"].unique()
    }
    for path in (folder / "tables").glob("*.csv"):
        if path.stem in profile["SWEEPS"]:
            shown[path.stem] = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=0)
    assert set(shown) == set(profile["SWEEPS"])
    methods, found = {method for method, _ in rows}, {"teacher", "student", *REFERENCES}
    for sweep, table in shown.items():
        assert len(table) >= 2
        for value, line in table.iterrows():
            value = str(value)
            is_teacher = value.endswith("teacher") and value != "teacher" or value == "teacher"
            if sweep == "student_start":
                is_teacher = False
            own = f"{sweep}_{value.removesuffix(', teacher')}{'_teacher' * (', ' in value)}"
            method = own if own in methods else "teacher" if is_teacher else "student"
            expected = 100 * rows[method, 0]["metric_map_at_r"]
            shown_mean = float(line["MAP@R"].split(" [")[0])
            # From results by class, kept rounded: a tie may round to the other side.
            assert shown_mean == pytest.approx(expected, abs=0.055), (sweep, value)
            found.add(method)
    assert found == methods  # every row is a line of a table
    served = (
        "start_given",
        "components_teacher",
        "components_basis_and_mining",
        "mining_similarity",
    )
    served += ("similarity_loss_distribution", "basis_start_random", "gradient_damped", "rounds_1")
    served += ("labels_1.0", "label_noise_0.0_teacher", "pool_size_1.0", "warm_up_2")
    assert not methods & set(served)


def test_where_labels_change_a_student_stands_beside_a_teacher_of_its_own(smoke):
    rows = {method: row for (method, _), row in all_rows(smoke / ABLATIONS).items()}
    teachers = [m for m in rows if m.endswith("_teacher")]
    of_labels = [f"labels_{share}_teacher" for share in (0.25, 0.5)]
    of_labels += [f"label_noise_{share}_teacher" for share in (0.1, 0.3)]
    margins = ("0.0_and_0.5", "0.3_and_0.8")
    assert set(teachers) == {*of_labels, *(f"pair_margins_{pair}_teacher" for pair in margins)}
    curves = {curve(rows[method]) for method in [*teachers, "teacher"]}
    assert len(curves) == len(teachers) + 1
    table = pd.read_csv(
        smoke / ABLATIONS / "tables" / "labels.csv", index_col="labels", keep_default_na=False
    )
    gain = [rows[f"labels_0.25{which}"]["metric_map_at_r"] for which in ("", "_teacher")]
    assert float(table.loc["0.25", "MAP@R, change"]) == pytest.approx(
        100 * (gain[0] - gain[1]), abs=0.055
    )
    assert table.loc["0.25, teacher", "MAP@R, change"] == ""


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


def test_each_arm_of_slade_changes_one_thing(tmp_path):
    names = execute_cells(SLADE, tmp_path, runs=False, ROUNDS=2, STUDENT_START="start")
    truth, clusters = torch.arange(40) % 5, torch.arange(40) // 10

    class Part(SimpleNamespace):
        def __len__(self):
            return 40

    pool = Part(labels=truth, num_classes=5)
    splits = SimpleNamespace(train=Part(num_classes=10), unlabelled=pool)
    asked = []

    def record(*given, **options):
        asked.append((*given, options))

    replicate = SimpleNamespace(splits=splits, seed=3, teach=record, learn=record)
    teacher = {"chosen": {"weight": 1}}
    for arm in SLADE_ARMS[1:]:
        names["train"](names["Method"]("given", "contrastive", arm), replicate, {}, teacher)
    longer = asked.pop(1)
    assert longer[-1]["state"] is teacher["chosen"]
    assert (longer[1].steps, longer[1].batch_size) == (2 * 12, 2 * 8)
    given = dict(zip(["student", *SLADE_ARMS[3:]], asked, strict=True))
    for arm, (of, _, settings, options) in given.items():
        by_clusters = arm in ("clusters", "shuffled", "oracle")
        assert settings.mining == ("cluster" if by_clusters else "similarity")
        assert (settings.steps, settings.batch_size, settings.rounds) == (12, 8, 2)
        assert of is teacher and options["from_start"]
        is_labelled = arm == "labelled_pool"  # twice the classes, twice the clusters
        assert options["pool"] is (splits.train if is_labelled else pool)
        assert settings.num_clusters == (12 if is_labelled else 6)
    relabelled = {arm: asked[-1]["relabel"](clusters) for arm, asked in given.items()}
    assert torch.equal(relabelled.pop("oracle"), truth)
    shuffled = relabelled.pop("shuffled")
    assert torch.equal(shuffled.bincount(), clusters.bincount())
    assert (shuffled == clusters).float().mean() < 0.6  # a quarter would be chance
    assert all(torch.equal(labels, clusters) for labels in relabelled.values())


@pytest.mark.parametrize("hand_over", [False, True])
def test_a_student_is_handed_over_to_the_next_fold_only_if_asked(tmp_path, hand_over):
    names = execute_cells(SLADE, tmp_path, runs=False, HAND_OVER=hand_over)
    teachers = []

    def train(method, fold, searched, teacher=None):
        if method.arm == "teacher":
            return {"chosen": f"teacher {fold}", "last": "unused"}
        teachers.append(teacher["chosen"])
        return {"chosen": "unused", "last": f"student {fold}"}

    names["replicate_of"] = lambda method, seed, fold=None: fold
    names["load_splits"] = lambda seed, fold=None: SimpleNamespace(fingerprint="0a")
    names["train"] = train
    student = names["Method"]("given", "contrastive", "student", is_joined=True)
    for fold in range(4):
        names["made_by"](student, 0, fold)
    handed = [f"student {n}" if hand_over else f"teacher {n + 1}" for n in range(3)]
    assert teachers == ["teacher 0", *handed]


@pytest.mark.slow
def test_every_arm_of_slade_is_searched_and_runs_with_what_it_found(tmp_path):
    arms = ["longer", "labelled_pool", "oracle"]
    changes = {"STARTS": ["given"], "ARMS": arms, "REFERENCES": [], "SEEDS": [0], "BATCH_SIZE": 6}
    changes |= {"SELECTION": "last", "SEARCH_TRIALS": 3, "SEARCH_FOLDS": 2, "STEPS": 6}
    execute_cells(SLADE, tmp_path, MEASURE_EVERY=3, **changes)

    rows = whole_rows(tmp_path / SLADE).set_index("method")
    searched = {
        path.name.split("-seed")[0]: json.loads(path.read_text())["trials"]
        for path in (tmp_path / SLADE / "searches").glob("*.json")
    }
    single = [f"contrastive_{arm}" for arm in ("teacher", "student", *arms)]
    assert sorted(searched) == sorted(single)
    assert {len(trials) for trials in searched.values()} == {3}
    found = {}
    for method, trials in searched.items():
        best = max(trials, key=lambda trial: max(trial["scores"].values()))
        step = int(max(best["scores"], key=lambda step: (best["scores"][step], -int(step))))
        found[method] = best["settings"]
        joined = [f"{method}_concatenated"] if method in single[:2] else []
        for name in (method, *joined):
            own = rows.loc[name, "params"]
            assert {key: own[key] for key in best["settings"]} == best["settings"]
        row = rows.loc[method]
        assert (row["params"]["CHOSEN_STEP"], row["selected_step"]) == (step, step)
    teacher = found["contrastive_teacher"]
    of_teacher = ("IMAGES_PER_CLASS", "positive_margin", "negative_margin")
    for method in single[1:]:
        for trial in searched[method]:
            assert all(trial["settings"][name] == teacher[name] for name in of_teacher)
        assert searched[method][0]["settings"]["LEARNING_RATE"] == teacher["LEARNING_RATE"]
    rates = {tuple(t["settings"]["LEARNING_RATE"] for t in searched[m]) for m in single[1:]}
    assert len(rates) == 1  # all arms try the same
    assert searched["contrastive_longer"][1]["settings"].keys() == {"LEARNING_RATE", *of_teacher}
    assert "NUM_CLUSTERS" not in searched["contrastive_oracle"][1]["settings"]
    clusters = found["contrastive_student"]["NUM_CLUSTERS"]
    assert rows.loc["contrastive_student", "metric_pseudo_clusters"] == clusters
    assert rows.loc["contrastive_oracle", "metric_pseudo_clusters"] == 10  # its classes


def test_the_ablations_change_labels_and_pools_as_they_say(tmp_path):
    names = execute_cells(ABLATIONS, tmp_path, runs=False, MAX_IMAGES_PER_CLASS=0)
    data, altered = names["Data"], names["altered"]

    def images(part):
        return set(part.index.tolist())

    given = altered(0, data())
    assert set(given.train.labels.bincount().tolist()) == {24}
    quarter, half = (altered(0, data(label_share=share)) for share in (0.25, 0.5))
    for share, fewer in ((0.25, quarter), (0.5, half)):
        assert fewer.train.labels.bincount().tolist() == [24 * share] * given.train.num_classes
        assert images(fewer.unlabelled) == images(given.unlabelled)
    assert images(quarter.train) < images(half.train) < images(given.train)

    right = given.train.labels
    wrong = [altered(0, data(label_noise=share)).train.labels != right for share in (0.1, 0.3, 1)]
    for share, found in zip((0.1, 0.3), wrong, strict=False):
        assert found.float().mean().item() == pytest.approx(share, abs=0.07)
    assert (wrong[0] <= wrong[1]).all() and wrong[2].all()  # never the right one by chance

    small, middle = (altered(0, data(pool_share=share)).unlabelled for share in (0.25, 0.5))
    assert images(small) < images(middle) < images(given.unlabelled)
    for share, pool in ((0.25, small), (0.5, middle)):
        assert len(pool) == pytest.approx(share * len(given.unlabelled), abs=20)
        assert pool.num_classes == given.unlabelled.num_classes

    counts = given.unlabelled.labels.bincount()
    assert counts.max() > 3 * counts.median()  # or there were nothing to balance
    by_class, at_random = (
        altered(0, data(capped=how)).unlabelled.labels.bincount() for how in ("classes", "images")
    )
    assert torch.equal(by_class, counts.clamp(max=int(counts.median())))
    assert at_random.sum() == by_class.sum() and at_random.max() > by_class.max()

    pools = {pool: altered(0, data(pool=pool)) for pool in ("labelled_classes", "test_classes")}
    named = {pool: set(splits.unlabelled.class_names) for pool, splits in pools.items()}
    assert named["labelled_classes"] == set(given.train.class_names)
    assert named["test_classes"] <= set(given.test.class_names)
    for splits in pools.values():
        assert torch.equal(splits.train.labels, given.train.labels)
        assert images(splits.train) == images(given.train)


# Parameters of a careless user, and what is said to it.
CARELESS = [
    (SLADE, {"POOL": "none"}, "POOL=none leaves nothing to learn from; choose a pool"),
    (SLADE, {"CACHED_VIEWS": 2}, "SwAV trains the trunk, which CACHED_VIEWS freezes; leave swav"),
    (SLADE, {"ARMS": ["magic"]}, "ARMS: there is no magic; choose from longer, labelled_pool"),
    (SLADE, {"METHODS": ["triplet"]}, "METHODS: there is no triplet; choose from contrastive, "),
    (SLADE, {"NUM_CLUSTERS": 99}, "NUM_CLUSTERS=99 .* of 38 images has; use"),
    (SLADE, {"NUM_CLUSTERS": 3}, "BATCH_SIZE=8: batches of 8 classes .* from 3 clusters"),
    (
        SLADE,
        {"SEARCH_TRIALS": 2, "SELECTION": "last"},
        "BATCH_SIZE=8: batches of 8 classes .* from 7 labelled ones",
    ),
    (SLADE, {"SEARCH_TRIALS": 2, "ARMS": []}, "with SEARCH_TRIALS set SELECTION=last"),
    (SLADE, {"EMBEDDING_DIM": 18}, "EMBEDDING_DIM=18 / 4 dimensions .* use a multiple of 4"),
    (
        SLADE,
        {"STARTS": ["swav_checkpoint"]},
        "STARTS has swav_checkpoint; set SWAV_CHECKPOINT to the file it starts from",
    ),
    (
        SLADE,
        {"STARTS": ["swav_checkpoint"], "SWAV_CHECKPOINT": "nowhere.pth.tar"},
        "there is no SwAV checkpoint .*nowhere.pth.tar; get",
    ),
    (SLADE, {"BATCH_SIZE": 24}, "BATCH_SIZE=24: batches of 24 classes"),
    (SLADE, {"BASIS_WEIGHT": 0.0}, "BASIS_WEIGHT=0 learns no basis; set MINING=cluster and WARM"),
    (ABLATIONS, {"NUM_CLUSTERS": 3}, "BATCH_SIZE=8: batches of 4 classes .* from 3 clusters"),
    (ABLATIONS, {"CLUSTER_SHARES": [0.25]}, "BATCH_SIZE=8: .* from 2 clusters"),
    (ABLATIONS, {"START": "swav_checkpoint"}, "START=swav_checkpoint; set SWAV_CHECKPOINT to the"),
    (ABLATIONS, {"POOL": "none"}, "POOL=none leaves nothing to learn from; choose a pool"),
    (ABLATIONS, {"CACHED_VIEWS": 2}, "SwAV trains the trunk, which CACHED_VIEWS freezes; leave"),
    (ABLATIONS, {"SWEEPS": ["magic"]}, "SWEEPS: there is no magic; choose from start, components"),
    (ABLATIONS, {"LOSS": "triplet"}, "LOSS: there is no triplet; choose from contrastive, "),
    (ABLATIONS, {"LOSS": "multi_similarity"}, "LOSS=multi_similarity has no pair_margins; leave"),
    (
        ABLATIONS,
        {"SWAV_CHECKPOINT": "nowhere.pth.tar"},
        "there is no SwAV checkpoint .*nowhere.pth.tar; get",
    ),
    (ABLATIONS, {"NUM_CLUSTERS": 99}, "NUM_CLUSTERS=99 .* of 38 images has; use"),
]


@pytest.mark.parametrize(("chapter", "changes", "message"), CARELESS, ids=str)
def test_what_slade_cannot_do_is_said_before_anything_is_trained(
    tmp_path, chapter, changes, message
):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        execute_cells(chapter, tmp_path, **changes)
    assert "\n" not in str(refused.value)
    assert not any((tmp_path / chapter / made).exists() for made in ("runs", "stages"))


KILLED = """
import json, os, signal, sys
from pathlib import Path

import torch
import dmlkit.evaluation, dmlkit.plots, dmlkit.slade, dmlkit.swav
from tests.test_book import SLADE, execute_cells

folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(stored, path):
    path.write_bytes(b"half a file")
    die()


# What dies: SwAV, the teacher at its first validation, the student as it clusters, and its file.
deaths = [
    (dmlkit.swav, "count_usage", die), (dmlkit.evaluation, "evaluate", die),
    (dmlkit.slade, "cluster", die), (torch, "save", write_half),
]
seen = []
for module, name, death in deaths:
    child = os.fork()
    if not child:
        setattr(module, name, death)
        execute_cells(SLADE, folder / "killed", **changes)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    files = (folder / "killed").glob("*/[rs][ut]*/[!.]*")
    seen.append([status == signal.SIGKILL, {str(p): p.stat().st_mtime_ns for p in files}])
execute_cells(SLADE, folder / "whole", **changes)
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_a_slade_chapter_killed_at_any_stage_goes_on_behind_the_last(run_dmlkit, tmp_path):
    changes = {"SEEDS": [0], "STARTS": ["swav"], "ARMS": [], "REFERENCES": [], "JOINED": False}
    command = [sys.executable, "-c", KILLED, tmp_path, json.dumps(changes)]
    killed = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == 0, killed.stderr
    seen = json.loads(killed.stdout.splitlines()[-1])
    stages = ["swav", "swav_contrastive_teacher", "swav_contrastive_student"]
    for (was_killed, files), number in zip(seen, (0, 1, 2, 2), strict=True):
        assert was_killed
        found = [Path(file).name.rpartition("-seed")[0] for file in files if "/stages/" in file]
        assert sorted(found) == sorted(stages[:number])
    arguments = [
        word for name, value in changes.items() for word in ("-p", name, json.dumps(value))
    ]
    arguments = ["--profile", "smoke", "--results-dir", tmp_path / "killed", *arguments]
    finished = run_dmlkit("run", SLADE, *arguments)
    assert finished.returncode == 0, finished.stderr
    for _, files in seen:  # each was written once
        assert files == {file: Path(file).stat().st_mtime_ns for file in files}
    resumed, whole = (all_rows(tmp_path / name / SLADE) for name in ("killed", "whole"))
    assert len(whole) == 3 and resumed.keys() == whole.keys()
    for key, row in whole.items():
        assert metrics_of(resumed[key]) == metrics_of(row)
        assert resumed[key]["history"] == row["history"]


def fake_swav_checkpoint(path):
    """Write random weights as SwAV's official file holds them."""
    torch.manual_seed(5)
    weights = {n: w for n, w in resnet50().state_dict().items() if not n.startswith("fc.")}
    weights |= {"projection_head.0.weight": torch.ones(2, 2), "prototypes.weight": torch.ones(2, 2)}
    torch.save({f"module.{name}": weight for name, weight in weights.items()}, path)
    return path


@pytest.mark.slow
def test_the_slade_chapter_executes_on_the_paper_profile(run_dmlkit, tmp_path):
    make_tree("cub200_2011", tmp_path / "data", num_classes=16)  # two of them in a fold
    make_tree("nabirds", tmp_path / "data", num_classes=6, images_per_class=6)
    changes = {
        **{"DATA_DIR": tmp_path / "data", "WEIGHTS": "none", "SEEDS": "[0]"},
        **{"SWAV_CHECKPOINT": fake_swav_checkpoint(tmp_path / "swav.pth.tar")},
        **{"STARTS": "[swav_checkpoint]", "METHODS": "[multi_similarity]", "ARMS": "[clusters]"},
        **{"STEPS": 2, "BATCH_SIZE": 8, "NUM_CLUSTERS": 5, "WARM_UP_STEPS": 1, "EMBEDDING_DIM": 16},
        **{"IMAGE_SIZE": 32, "CACHE_SIZE": 32, "REFERENCES": "[frozen_trunk]"},
        **{"RECALL_AT": "[1,2]"},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, value)]
    folder = tmp_path / "results"
    finished = run_dmlkit("run", SLADE, "--profile", "paper", "--results-dir", folder, *arguments)
    shutil.rmtree(folder / SLADE / "stages", ignore_errors=True)  # two gigabytes
    assert finished.returncode == 0, finished.stderr
    rows = all_rows(folder / SLADE)
    of_arms = [f"swav_checkpoint_multi_similarity_{arm}" for arm in ("teacher", "student")]
    joined = [f"{name}_concatenated" for name in of_arms]
    of_arms.append("swav_checkpoint_multi_similarity_clusters")
    assert {name for name, _ in rows} == {
        *("frozen_trunk", "swav_checkpoint_trunk", *of_arms, *joined)
    }
    frozen, swav = (
        np.load(*(folder / SLADE / "embeddings").glob(f"{name}_trunk-*.npy"))
        for name in ("frozen", "swav_checkpoint")
    )
    assert frozen.shape == swav.shape == (32, 2048) and (frozen != swav).any()
    assert rows[joined[1], 0]["metric_pseudo_clusters"] == 5
    table = (folder / SLADE / "tables" / "main.md").read_text()
    assert "**Not run: random images in the layout of the data set.**" in table
    assert "No claim is judged" in (folder / "index.html").read_text()


@pytest.mark.slow
def test_the_slade_ablations_execute_on_the_paper_profile(run_dmlkit, tmp_path):
    make_tree("in_shop", tmp_path / "data", num_classes=12, images_per_class=5)  # with a gallery
    make_tree("fashion200k", tmp_path / "data", num_classes=10)
    changes = {
        **{"DATASET": "in_shop", "POOL": "fashion200k", "PROTOCOL": "official", "SEEDS": "[0]"},
        **{"DATA_DIR": tmp_path / "data", "WEIGHTS": "none", "TRUNK": "small_convnet"},
        **{"SWAV_CHECKPOINT": "none", "SWEEPS": "[components, clusters]", "SELECTION": "last"},
        **{"SWAV_STEPS": 2, "SWAV_BATCH_SIZE": 8, "SWAV_QUEUE": 8, "SWAV_PROTOTYPES": 8},
        **{"SWAV_SIZES": "[32,16]", "SWAV_WIDTH": 16},
        **{"STEPS": 2, "BATCH_SIZE": 8, "IMAGES_PER_CLASS": 2, "NUM_CLUSTERS": 5},
        **{"CLUSTER_SHARES": "[0.5, 0.75]", "WARM_UP_STEPS": 1, "EMBEDDING_DIM": 16},
        **{"IMAGE_SIZE": 32, "CACHE_SIZE": 32, "REFERENCES": "[frozen_trunk]"},
        **{"RECALL_AT": "[1,2]"},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, value)]
    folder = tmp_path / "results"
    arguments = ["--profile", "paper", "--results-dir", folder, *arguments]
    finished = run_dmlkit("run", ABLATIONS, *arguments)
    assert finished.returncode == 0, finished.stderr
    rows = all_rows(folder / ABLATIONS)
    points = [f"components_{name}" for name in ("labels_and_basis", "pseudo_labels", "basis")]
    points += ["clusters_0.5", "clusters_0.75"]
    assert {name for name, _ in rows} == {"frozen_trunk", "teacher", "student", *points}
    pool = rows["student", 0]["params"]["POOL"]
    assert pool == "fashion200k"
    for share in (0.5, 0.75):  # of ten classes
        assert rows[f"clusters_{share}", 0]["metric_pseudo_clusters"] == round(share * 10)
    for name in ("components", "clusters"):
        table = (folder / ABLATIONS / "tables" / f"{name}.md").read_text()
        assert "**Not run: random images in the layout of the data set.**" in table
    assert "No claim is judged" in (folder / "index.html").read_text()


@pytest.mark.slow
def test_stock_papermill_from_another_folder_gives_the_same_numbers(smoke, tmp_path):
    profiles = ROOT / "book" / "profiles"
    command = [sys.executable, "-m", "papermill", ROOT / "book" / f"{CHAPTER}.ipynb", "out.ipynb"]
    command += ["-f", profiles / "smoke.yaml", "-f", profiles / "smoke" / f"{CHAPTER}.yaml"]
    command += ["-p", "RESULTS_DIR", tmp_path / "results"]
    finished = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    pd.testing.assert_frame_equal(metric_columns(tmp_path / "results"), metric_columns(smoke))


@pytest.mark.slow
def test_a_failing_chapter_ends_in_one_sentence(run_dmlkit, tmp_path):
    arguments = ["--profile", "smoke", "--results-dir", tmp_path, "-p", "LEARNING_RATE", "1e30"]
    finished = run_dmlkit("run", CHAPTER, *arguments)
    assert finished.returncode == 1
    said = [line for line in finished.stderr.splitlines() if line.startswith("dmlkit: ")]
    assert len(said) == 1 and "the loss is nan at step" in said[0]
    assert not (tmp_path / CHAPTER / "chapter.ipynb").exists()


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
    chapters = (EVALUATION, CHAPTER, NORM_SOFTMAX, RANKING)
    finished = run_dmlkit(
        "run", *chapters, "--profile", "smoke", "--results-dir", folder, *arguments
    )
    assert finished.returncode == 0, finished.stderr
    # METHODS is no parameter of the first chapter, which runs as it is.
    assert set(pd.read_csv(folder / CHAPTER / "runs.csv")["method"]) == {
        "multi_similarity",
        *REFERENCES,
    }
    assert (folder / EVALUATION / "tables" / "protocols.md").exists()
    assert "No claim is judged" in (folder / "index.html").read_text()
    assert (folder / CHAPTER / "pictures" / "neighbours.jpg").exists()
    assert not (folder / CHAPTER / "figures" / "neighbours.jpg").exists()


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
    finished = run_dmlkit("run", EVALUATION, *arguments)
    assert finished.returncode == 0, finished.stderr
    table = (folder / EVALUATION / "tables" / "protocols.md").read_text()
    assert "**Not run: random images in the layout of the data set.**" in table


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "methods"),
    # Without a projection Multi-Similarity has nothing to warm up.
    [("cub200_2011", ["multi_similarity", "norm_softmax"]), ("in_shop", ["norm_softmax"])],
)
def test_the_chapter_on_norm_softmax_executes_on_the_paper_profile(
    run_dmlkit, tmp_path, dataset, methods
):
    make_tree(dataset, tmp_path / "data", num_classes=8, images_per_class=5)
    changes = {
        **{"DATASET": dataset, "DATA_DIR": tmp_path / "data", "WEIGHTS": "none", "SEEDS": "[0]"},
        **{"STEPS": 2, "WARM_UP_STEPS": 1, "BATCH_SIZE": 10, "IMAGES_PER_CLASS": 5},
        **{"RECALL_AT": "[1,2]", "METHODS": json.dumps(methods), "SWEEPS": "[dimension, trunk]"},
        **{"DIMENSIONS": "[16]", "OTHER_TRUNKS": "[googlenet none tensorflow]"},
        **{"REFERENCES": "[frozen_trunk]", "STEP_CLASSES": "[1000]", "SEARCHED_ITEMS": 100},
    }
    arguments = [word for name, value in changes.items() for word in ("-p", name, value)]
    folder = tmp_path / "results"
    arguments = ["--profile", "paper", "--results-dir", folder, *arguments]
    finished = run_dmlkit("run", NORM_SOFTMAX, *arguments)
    assert finished.returncode == 0, finished.stderr
    table = (folder / NORM_SOFTMAX / "tables" / "main.md").read_text()
    assert "| norm_softmax_binary |" in table
    assert "**Not run: random images in the layout of the data set.**" in table
    trunks = pd.read_csv(folder / NORM_SOFTMAX / "tables" / "trunks.csv")
    assert set(trunks["trunk"]) == {"resnet50", "googlenet"}
