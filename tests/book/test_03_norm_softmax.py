"""Chapter 3: sweeps, bits beside floats, one head per loss, the search of steps."""

import json

import pandas as pd
import pytest

from dmlkit.results import read_row
from tests.book.executing import whole_rows
from tests.official_trees import make_tree

CHAPTER = "03_norm_softmax"


def test_every_sweep_of_norm_softmax_is_run_and_only_equal_points_are_equal(smoke):
    rows = whole_rows(smoke / CHAPTER).set_index(["method", "seed"]).sort_index()
    methods = set(rows.index.get_level_values("method"))
    for sweep in ("layer_norm", "images_per_class", "temperature", "dimension"):
        points = [name for name in methods if name.startswith(f"norm_softmax_{sweep}_")]
        assert len({name.removesuffix("_binary") for name in points}) == 2, sweep
        assert sweep == "layer_norm" or (smoke / CHAPTER / "figures" / f"{sweep}.png").exists()
    metrics = rows[["metric_recall_at_1", "metric_map_at_r", "metric_recall_at_1_last"]]
    default = metrics.loc["norm_softmax"]
    for point in ("temperature_0.05", "class_share_1.0", "class_share_corrected_1.0"):
        pd.testing.assert_frame_equal(metrics.loc[f"norm_softmax_{point}"], default)
    pd.testing.assert_frame_equal(
        metrics.loc["norm_softmax_layer_norm_on_binary"], metrics.loc["norm_softmax_binary"]
    )
    files = (smoke / CHAPTER / "runs").glob("norm_softmax*.json")
    losses = {}
    for path in files:
        row = read_row(path)
        losses[row["method"], row["seed"]] = [entry["loss"] for entry in row["history"]]
    others = ("temperature_0.2", "class_share_0.75", "class_share_corrected_0.75")
    others += ("layer_norm_off", "images_per_class_random", "dimension_8", "mobilenet_v2_8")
    found = [losses[f"norm_softmax_{point}", 0] for point in others]
    assert losses["norm_softmax", 0] not in found
    assert len({tuple(values) for values in found}) == len(others)
    of_runs = whole_rows(smoke / CHAPTER).set_index("method")["params"]
    for params in of_runs["norm_softmax_class_share_0.75"]:
        assert params["num_sampled"] == 6  # of 8 training classes


def test_bits_stand_beside_floats_and_between_the_bounds_of_their_ties(smoke):
    rows = pd.read_csv(smoke / CHAPTER / "runs.csv").set_index("method")
    bits = rows[rows.index.str.endswith("_binary")]
    assert set(bits.index.str.removesuffix("_binary")) <= set(rows.index)
    expected = bits["metric_recall_at_1"]
    assert (bits["metric_recall_at_1_worst"] <= expected).all()
    assert (expected <= bits["metric_recall_at_1_best"]).all()
    crossed = pd.read_csv(smoke / CHAPTER / "tables" / "trunks.csv", index_col=[0, 1])
    assert crossed.notna().all().all()
    assert set(crossed.index.get_level_values(0)) == {"small_convnet", "mobilenet_v2"}
    shown = pd.read_csv(smoke / CHAPTER / "tables" / "layer_norm.csv", index_col="method")
    floats = shown[~shown.index.str.endswith("_binary")]  # bits are not validated
    assert len(floats) == 10 and floats["steps to 90% of it"].notna().all()


def test_each_loss_has_its_own_head_unless_the_sweep_says_otherwise(smoke):
    rows = whole_rows(smoke / CHAPTER).set_index(["method", "seed"]).sort_index()
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
        "run", CHAPTER, "--profile", "smoke", "--results-dir", tmp_path, *arguments
    )
    assert finished.returncode == 0, finished.stderr
    rows = whole_rows(tmp_path / CHAPTER)
    rows = rows[rows["seed"] == 1].set_index("method")
    params = rows["params"]
    (searched,) = (tmp_path / CHAPTER / "searches").glob("norm_softmax-seed1-*.json")
    trials = json.loads(searched.read_text())["trials"]
    assert len(trials) == 3
    best = max(trials, key=lambda trial: max(trial["scores"].values()))["settings"]
    for name in ("LEARNING_RATE", "LOSS_LR", "temperature", "IMAGES_PER_CLASS"):
        assert params["norm_softmax"][name] == best[name]
    for value in (0.05, 0.2):
        point = params[f"norm_softmax_temperature_{value}"]
        (searched,) = (tmp_path / CHAPTER / "searches").glob(f"*_{value}-seed1-*.json")
        (trial,) = json.loads(searched.read_text())["trials"]
        assert trial["settings"]["temperature"] == point["temperature"] == value
        assert (point["LEARNING_RATE"], point["IMAGES_PER_CLASS"]) == (0.001, 4)
        assert (
            point["CHOSEN_STEP"] == rows.loc[f"norm_softmax_temperature_{value}", "selected_step"]
        )


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
    finished = run_dmlkit("run", CHAPTER, *arguments)
    assert finished.returncode == 0, finished.stderr
    table = (folder / CHAPTER / "tables" / "main.md").read_text()
    assert "| norm_softmax_binary |" in table
    assert "**Not run: random images in the layout of the data set.**" in table
    trunks = pd.read_csv(folder / CHAPTER / "tables" / "trunks.csv")
    assert set(trunks["trunk"]) == {"resnet50", "googlenet"}
