"""Chapter 5: every arm of SLADE, joined models, what it refuses, how it goes on after a kill."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import resnet50

from tests.book.executing import (
    REFERENCES,
    all_rows,
    check_refusal,
    curve,
    execute_cells,
    metrics_of,
    whole_rows,
)
from tests.official_trees import make_tree

ROOT = Path(__file__).parents[2]
CHAPTER = "05_slade"
SLADE_ARMS = ["teacher", "student", "longer", "labelled_pool", "clusters", "shuffled", "oracle"]
# The controls are those of the first start.
SINGLE = [f"contrastive_{arm}" for arm in SLADE_ARMS]
SINGLE += ["swav_contrastive_teacher", "swav_contrastive_student"]
JOINED = [f"{name}_concatenated" for name in SINGLE if name.endswith(("_teacher", "_student"))]


def test_every_arm_of_slade_trains_in_its_own_way(smoke):
    rows = all_rows(smoke / CHAPTER)
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
    rows = all_rows(smoke / CHAPTER)
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
    table = pd.read_csv(smoke / CHAPTER / "tables" / "pseudo_labels.csv", index_col="method")
    assert list(table.index) == [name for name in SINGLE + JOINED if "_student" in name]
    assert (table["k / classes"] == 6 / 8).all()
    mean = np.mean([rows["swav_contrastive_student", seed]["metric_pseudo_ami"] for seed in (0, 1)])
    assert table.loc["swav_contrastive_student", "AMI"] == pytest.approx(mean, abs=6e-4)


def test_joined_models_have_a_quarter_of_the_dimensions_each_and_share_one_swav_trunk(smoke):
    rows = all_rows(smoke / CHAPTER)
    for method in SINGLE + JOINED:
        (path,) = (smoke / CHAPTER / "embeddings").glob(f"{method}-seed0-*.npy")
        embeddings = np.load(path).astype(np.float32)
        assert embeddings.shape == (rows[method, 0]["num_queries"], 16)
        if method in JOINED:  # four vectors of one length side by side
            parts = np.linalg.norm(embeddings.reshape(-1, 4, 16 // 4), axis=2)
            assert parts == pytest.approx(0.5, abs=1e-3)
    stages = [
        path.name.rpartition("-seed")[0] for path in (smoke / CHAPTER / "stages").glob("*.pt")
    ]
    of_folds = [name for name in stages if "_fold" in name]
    assert stages.count("swav") == 2 and len(set(of_folds)) == 2 * 2 * 4
    assert all(stages.count(name) == 2 for name in set(stages))  # one per replicate


def test_the_slade_chapter_shows_changes_swav_and_what_was_published(smoke):
    tables, rows = smoke / CHAPTER / "tables", all_rows(smoke / CHAPTER)

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


def test_each_arm_of_slade_changes_one_thing(tmp_path):
    names = execute_cells(CHAPTER, tmp_path, runs=False, ROUNDS=2, STUDENT_START="start")
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
    names = execute_cells(CHAPTER, tmp_path, runs=False, HAND_OVER=hand_over)
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
    execute_cells(CHAPTER, tmp_path, MEASURE_EVERY=3, **changes)

    rows = whole_rows(tmp_path / CHAPTER).set_index("method")
    searched = {
        path.name.split("-seed")[0]: json.loads(path.read_text())["trials"]
        for path in (tmp_path / CHAPTER / "searches").glob("*.json")
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


# Parameters of a careless user, and what is said to it.
CARELESS = [
    ({"POOL": "none"}, "POOL=none leaves nothing to learn from; choose a pool"),
    ({"CACHED_VIEWS": 2}, "SwAV trains the trunk, which CACHED_VIEWS freezes; leave swav"),
    ({"ARMS": ["magic"]}, "ARMS: there is no magic; choose from longer, labelled_pool"),
    ({"METHODS": ["triplet"]}, "METHODS: there is no triplet; choose from contrastive, "),
    ({"NUM_CLUSTERS": 99}, "NUM_CLUSTERS=99 .* of 38 images has; use"),
    ({"NUM_CLUSTERS": 3}, "BATCH_SIZE=8: batches of 8 classes .* from 3 clusters"),
    (
        {"SEARCH_TRIALS": 2, "SELECTION": "last"},
        "BATCH_SIZE=8: batches of 8 classes .* from 7 labelled ones",
    ),
    ({"SEARCH_TRIALS": 2, "ARMS": []}, "with SEARCH_TRIALS set SELECTION=last"),
    ({"EMBEDDING_DIM": 18}, "EMBEDDING_DIM=18 / 4 dimensions .* use a multiple of 4"),
    (
        {"STARTS": ["swav_checkpoint"]},
        "STARTS has swav_checkpoint; set SWAV_CHECKPOINT to the file it starts from",
    ),
    (
        {"STARTS": ["swav_checkpoint"], "SWAV_CHECKPOINT": "nowhere.pth.tar"},
        "there is no SwAV checkpoint .*nowhere.pth.tar; get",
    ),
    ({"BATCH_SIZE": 24}, "BATCH_SIZE=24: batches of 24 classes"),
    ({"BASIS_WEIGHT": 0.0}, "BASIS_WEIGHT=0 learns no basis; set MINING=cluster and WARM"),
]


@pytest.mark.parametrize(("changes", "message"), CARELESS, ids=str)
def test_what_slade_cannot_do_is_said_before_anything_is_trained(tmp_path, changes, message):
    check_refusal(CHAPTER, tmp_path, message, **changes)


KILLED = """
import json, os, signal, sys
from pathlib import Path

import torch
import dmlkit.evaluation, dmlkit.plots, dmlkit.slade, dmlkit.swav
from tests.book.executing import execute_cells

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
        execute_cells("05_slade", folder / "killed", **changes)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    files = (folder / "killed").glob("*/[rs][ut]*/[!.]*")
    seen.append([status == signal.SIGKILL, {str(p): p.stat().st_mtime_ns for p in files}])
execute_cells("05_slade", folder / "whole", **changes)
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
    finished = run_dmlkit("run", CHAPTER, *arguments)
    assert finished.returncode == 0, finished.stderr
    for _, files in seen:  # each was written once
        assert files == {file: Path(file).stat().st_mtime_ns for file in files}
    resumed, whole = (all_rows(tmp_path / name / CHAPTER) for name in ("killed", "whole"))
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
    finished = run_dmlkit("run", CHAPTER, "--profile", "paper", "--results-dir", folder, *arguments)
    shutil.rmtree(folder / CHAPTER / "stages", ignore_errors=True)  # two gigabytes
    assert finished.returncode == 0, finished.stderr
    rows = all_rows(folder / CHAPTER)
    of_arms = [f"swav_checkpoint_multi_similarity_{arm}" for arm in ("teacher", "student")]
    joined = [f"{name}_concatenated" for name in of_arms]
    of_arms.append("swav_checkpoint_multi_similarity_clusters")
    assert {name for name, _ in rows} == {
        *("frozen_trunk", "swav_checkpoint_trunk", *of_arms, *joined)
    }
    frozen, swav = (
        np.load(*(folder / CHAPTER / "embeddings").glob(f"{name}_trunk-*.npy"))
        for name in ("frozen", "swav_checkpoint")
    )
    assert frozen.shape == swav.shape == (32, 2048) and (frozen != swav).any()
    assert rows[joined[1], 0]["metric_pseudo_clusters"] == 5
    table = (folder / CHAPTER / "tables" / "main.md").read_text()
    assert "**Not run: random images in the layout of the data set.**" in table
    assert "No claim is judged" in (folder / "index.html").read_text()
