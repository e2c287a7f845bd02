"""The chapters executed on the smoke profile, through the real runner and stock papermill."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from dmlkit.results import read_scores
from tests.official_trees import make_tree

ROOT = Path(__file__).parents[1]
CHAPTER = "02_baseline_losses"
EVALUATION = "01_evaluation"
NORM_SOFTMAX = "03_norm_softmax"
RANKING = "04_self_supervised_ranking"
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
    return pd.DataFrame([json.loads(path.read_text()) for path in (folder / "runs").glob("*.json")])


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
        assert shown.split(" [")[0] == f"{expected:.1f}"
    assert (table["n"] == 2).all()


def test_claims_compare_the_rows_and_are_marked_as_demonstrations(smoke):
    rows = pd.read_csv(smoke / CHAPTER / "runs.csv").set_index(["method", "seed"])
    claims = pd.read_csv(smoke / CHAPTER / "claims.csv").set_index("claim")
    recall = rows["metric_recall_at_1"]
    expected = (recall["multi_similarity"] - recall["contrastive"]).mean()
    assert claims.loc["B1a", "difference"] == pytest.approx(expected, abs=1e-6)
    assert claims["verdict"].str.endswith("(demonstration)").all()
    assert (claims["n"] == 2).all()


def test_results_by_class_average_to_the_rows(smoke):
    for path in (smoke / CHAPTER / "runs").glob("*.json"):
        row = json.loads(path.read_text())
        scores = read_scores(path.with_suffix(".npz"))
        for metric in ("recall_at_1", "r_precision", "map_at_r"):
            mean = np.average(scores[metric], weights=scores["queries"])
            assert mean == pytest.approx(row[f"metric_{metric}"], abs=1e-7)  # kept as float32
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


@pytest.mark.parametrize("chapter", [EVALUATION, CHAPTER, NORM_SOFTMAX, RANKING])
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
    every -= {"sampled_norm_softmax", "self_supervised_ranking"}  # of other chapters
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
    rows = pd.read_csv(smoke / NORM_SOFTMAX / "runs.csv").set_index(["method", "seed"])
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
        row = json.loads(path.read_text())
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
        row = json.loads(path.read_text())
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
    assert found["mean"] == pytest.approx(100 * gain, abs=0.006)
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
    finished = run_dmlkit("run", "--profile", "smoke", "--results-dir", folder, *arguments)
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
