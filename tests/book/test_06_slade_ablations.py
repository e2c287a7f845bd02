"""Chapter 6: every point of the ablations, and what stands beside what."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from tests.book.executing import (
    REFERENCES,
    all_rows,
    check_refusal,
    curve,
    execute_cells,
    metrics_of,
)
from tests.official_trees import make_tree

ROOT = Path(__file__).parents[2]
CHAPTER = "06_slade_ablations"


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
    rows = {method: row for (method, _), row in all_rows(smoke / CHAPTER).items()}
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
    folder, rows = smoke / CHAPTER, all_rows(smoke / CHAPTER)
    profile = yaml.safe_load((ROOT / "book/profiles/smoke" / f"{CHAPTER}.yaml").read_text())
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
    rows = {method: row for (method, _), row in all_rows(smoke / CHAPTER).items()}
    teachers = [m for m in rows if m.endswith("_teacher")]
    of_labels = [f"labels_{share}_teacher" for share in (0.25, 0.5)]
    of_labels += [f"label_noise_{share}_teacher" for share in (0.1, 0.3)]
    margins = ("0.0_and_0.5", "0.3_and_0.8")
    assert set(teachers) == {*of_labels, *(f"pair_margins_{pair}_teacher" for pair in margins)}
    curves = {curve(rows[method]) for method in [*teachers, "teacher"]}
    assert len(curves) == len(teachers) + 1
    table = pd.read_csv(
        smoke / CHAPTER / "tables" / "labels.csv", index_col="labels", keep_default_na=False
    )
    gain = [rows[f"labels_0.25{which}"]["metric_map_at_r"] for which in ("", "_teacher")]
    assert float(table.loc["0.25", "MAP@R, change"]) == pytest.approx(
        100 * (gain[0] - gain[1]), abs=0.055
    )
    assert table.loc["0.25, teacher", "MAP@R, change"] == ""


def test_the_ablations_change_labels_and_pools_as_they_say(tmp_path):
    names = execute_cells(CHAPTER, tmp_path, runs=False, MAX_IMAGES_PER_CLASS=0)
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
    ({"NUM_CLUSTERS": 3}, "BATCH_SIZE=8: batches of 4 classes .* from 3 clusters"),
    ({"CLUSTER_SHARES": [0.25]}, "BATCH_SIZE=8: .* from 2 clusters"),
    ({"START": "swav_checkpoint"}, "START=swav_checkpoint; set SWAV_CHECKPOINT to the"),
    ({"POOL": "none"}, "POOL=none leaves nothing to learn from; choose a pool"),
    ({"CACHED_VIEWS": 2}, "SwAV trains the trunk, which CACHED_VIEWS freezes; leave"),
    ({"SWEEPS": ["magic"]}, "SWEEPS: there is no magic; choose from start, components"),
    ({"LOSS": "triplet"}, "LOSS: there is no triplet; choose from contrastive, "),
    ({"LOSS": "multi_similarity"}, "LOSS=multi_similarity has no pair_margins; leave"),
    (
        {"SWAV_CHECKPOINT": "nowhere.pth.tar"},
        "there is no SwAV checkpoint .*nowhere.pth.tar; get",
    ),
    ({"NUM_CLUSTERS": 99}, "NUM_CLUSTERS=99 .* of 38 images has; use"),
]


@pytest.mark.parametrize(("changes", "message"), CARELESS, ids=str)
def test_what_they_cannot_do_is_said_before_anything_is_trained(tmp_path, changes, message):
    check_refusal(CHAPTER, tmp_path, message, **changes)


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
    finished = run_dmlkit("run", CHAPTER, *arguments)
    assert finished.returncode == 0, finished.stderr
    rows = all_rows(folder / CHAPTER)
    points = [f"components_{name}" for name in ("labels_and_basis", "pseudo_labels", "basis")]
    points += ["clusters_0.5", "clusters_0.75"]
    assert {name for name, _ in rows} == {"frozen_trunk", "teacher", "student", *points}
    pool = rows["student", 0]["params"]["POOL"]
    assert pool == "fashion200k"
    for share in (0.5, 0.75):  # of ten classes
        assert rows[f"clusters_{share}", 0]["metric_pseudo_clusters"] == round(share * 10)
    for name in ("components", "clusters"):
        table = (folder / CHAPTER / "tables" / f"{name}.md").read_text()
        assert "**Not run: random images in the layout of the data set.**" in table
    assert "No claim is judged" in (folder / "index.html").read_text()
