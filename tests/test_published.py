"""The published numbers are complete, as printed, and shown beside ours."""

import csv

import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from dmlkit import published as module
from dmlkit.datasets import DATASETS
from dmlkit.metrics import clustering_metrics, retrieval_metrics
from dmlkit.paths import PROJECT_ROOT
from dmlkit.published import CLOSEST, TITLES, beside, caveat, published

BASELINES = "02_baseline_losses"
COLUMNS = (
    *("chapters", "part", "name", "method", "dataset", "metrics", "percent", "trunk", "dim"),
    *("protocol", "source", "certainty", "note"),
)
METHODS = {
    *("contrastive", "contrastive_similarity", "triplet_semihard", "triplet_all", "nt_xent"),
    *("lifted_structure", "binomial_deviance", "nca", "margin", "margin_per_class", "weight"),
    *("multi_similarity", "multi_similarity_all_pairs", "proxy_nca", "proxy_nca_plus_plus"),
    *("proxy_anchor", "norm_softmax", "cos_face", "arc_face", "fast_ap", "soft_triple"),
    *("frozen_trunk", "norm_softmax_binary", "margin_ranking"),
    *(
        f"{start}{loss}_{arm}"
        for start in ("", "swav_")
        for loss in ("contrastive", "multi_similarity")
        for arm in ("teacher", "student")
    ),
}
CERTAINTIES = {
    *("given", "official code", "paper text", "paper text, read off a plot", "third party"),
    *("recollection", "recollection, cross-checked", "recollection, R@1 given"),
}
with (PROJECT_ROOT / "book" / "published.csv").open(newline="") as file:
    LINES = list(csv.DictReader(file))


def numbers_of(line: dict[str, str]) -> dict[str, float]:
    percent = map(float, line["percent"].split())
    return dict(zip(line["metrics"].split(), percent, strict=True))


def find(**wanted: str) -> dict[str, float]:
    """Return the numbers of the one line that has all that is wanted."""
    lines = [line for line in LINES if wanted.items() <= line.items()]
    assert len(lines) == 1, f"{len(lines)} lines are {wanted}"
    return numbers_of(lines[0])


def test_every_line_says_what_it_is_and_where_it_is_from():
    assert tuple(LINES[0]) == COLUMNS
    for line in LINES:
        assert None not in line and None not in line.values(), line  # as many cells as columns
        for name in ("chapters", "part", "name", "metrics", "percent", "protocol", "source"):
            assert line[name].strip() == line[name] != "", line
        assert line["certainty"] in CERTAINTIES, line
        assert line["dataset"] in TITLES, line
        assert line["method"] in METHODS | {""}, line
        assert line["dim"] == "" or int(line["dim"]) > 0, line
        assert line["protocol"] in (
            *("official", "reality_check_concatenated", "reality_check_separated"),
        ), line


def test_metrics_are_those_the_book_computes():
    labels = torch.arange(4).repeat_interleave(300)  # enough for R@1000
    unit = one_hot(labels).float()
    ks = (1, 2, 4, 8, 10, 16, 20, 30, 32, 40, 50, 100, 1000)
    computed = {*retrieval_metrics(unit, labels, ks=ks).means(), *clustering_metrics(unit, labels)}
    assert "nmi_geometric" in computed  # what of ours stands beside the papers' NMI
    assert {metric for line in LINES for metric in numbers_of(line)} <= computed | {"nmi"}


def test_numbers_are_percentages_and_recall_does_not_fall_with_k():
    for line in LINES:
        numbers = numbers_of(line)
        assert all(0 < number < 100 for number in numbers.values()), line
        recalls = [number for metric, number in numbers.items() if metric.startswith("recall")]
        ks = [int(metric.rpartition("_")[2]) for metric in numbers if metric.startswith("recall")]
        assert ks == sorted(set(ks)), line
        assert recalls == sorted(recalls), line
        if "map_at_r" in numbers and "r_precision" in numbers:
            assert numbers["map_at_r"] <= numbers["r_precision"], line


def test_no_line_stands_twice():
    keys = ("part", "name", "dataset", "trunk", "dim", "protocol", "source", "metrics")
    assert len({tuple(line[key] for key in keys) for line in LINES}) == len(LINES)


@pytest.mark.parametrize(
    ("wanted", "metric", "value"),
    [
        ({"name": "Margin", "source": "README of bnu-wangxun/Deep_Metric"}, "recall_at_1", 63.6),
        ({"name": "HTL", "source": "README of bnu-wangxun/Deep_Metric"}, "recall_at_32", 95.5),
        (
            {"name": "MS", "dim": "512", "source": "README of msight-tech/research-ms-loss"},
            *("recall_at_1", 65.7),
        ),
        ({"name": "Contrastive", "protocol": "reality_check_concatenated"}, "map_at_r", 26.53),
        ({"name": "Contrastive", "protocol": "reality_check_separated"}, "r_precision", 31.98),
        ({"name": "ProxyNCA, reproduction"}, "nmi", 60.64),
        ({"name": "Proxy-Anchor", "trunk": "ResNet-50"}, "recall_at_8", 91.4),
        ({"name": "Triplet", "trunk": "GoogLeNet"}, "map_at_r", 20.6),
        ({"name": "NormSoftmax", "source": "Zhai and Wu 2019, Table 2"}, "nmi", 66.2),
        ({"name": "SLADE S2"}, "map_at_r", 33.59),
    ],
    ids=lambda value: value.get("name", "") if isinstance(value, dict) else str(value),
)
def test_numbers_on_cub_are_those_printed(wanted, metric, value):
    assert find(dataset="cub200_2011", **wanted)[metric] == value


@pytest.mark.parametrize(
    ("wanted", "values"),
    [
        ({"name": "weight", "dataset": "in_shop"}, [89.64, 97.87, 98.47, 98.84, 99.05, 99.20]),
        ({"name": "HDC", "dataset": "stanford_online_products"}, [69.5, 84.4, 92.8, 97.7]),
        ({"name": "SNR", "dataset": "cars196"}, [82.02, 35.22, 25.03]),
        (
            {"name": "NormSoftmax, authors' code", "dataset": "cars196"},
            [89.50, 94.18, 96.84, 98.41],
        ),
    ],
    ids=["weight", "HDC", "SNR", "NormSoftmax"],
)
def test_whole_rows_are_those_printed(wanted, values):
    assert list(find(**wanted).values()) == values


def test_a_table_has_the_metrics_that_were_printed_and_sorts_within_protocols():
    table = published(BASELINES, "cub200_2011")
    assert list(table.columns) == [
        *("trunk", "dim", "R@1", "R@2", "R@4", "R@8", "R@16", "R@32", "RP", "MAP@R", "NMI"),
        *("protocol", "source", "certainty"),
    ]
    assert table.index[0] == "ProxyNCA++" and table["R@1"].iloc[0] == "72.2"
    for _, group in table.groupby("protocol"):
        assert group["R@1"].astype(float).is_monotonic_decreasing
    official = table[table["protocol"] == "official"]
    margin = official.loc["Margin"]
    assert [margin["R@1"], margin["R@16"], margin["R@32"]] == ["63.6", "94.2", "–"]
    assert table.index[len(official)] == "Contrastive"  # best of the next protocol


def test_an_ablation_stands_apart_from_the_main_table():
    table = published("06_slade_ablations", "cars196", "teacher")
    assert table["MAP@R"].tolist() == ["31.38", "35.54", "36.24"]  # as in the file
    assert not published("03_norm_softmax", "cub200_2011").index.str.contains("per class").any()


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_gets_the_closest_published_one_and_is_told(dataset):
    said = caveat(BASELINES, dataset)
    shown = dataset if dataset in TITLES else CLOSEST.get(dataset, "cub200_2011")
    pd.testing.assert_frame_equal(published(BASELINES, dataset), published(BASELINES, shown))
    on_others = f"Published on {TITLES[shown]}, not comparable"
    assert said.startswith(on_others) == (dataset not in TITLES)
    assert dataset in said or dataset in TITLES


def our_rows(dataset: str, **changes) -> pd.DataFrame:
    """Two runs of ``contrastive``, one of the untrained trunk and one of a method without rows."""
    params = {"TRUNK": "resnet50", "WEIGHTS": "imagenet", "EMBEDDING_DIM": 64, "CACHED_VIEWS": 0}
    rows = pd.DataFrame(
        {
            "method": ["contrastive", "contrastive", "frozen_trunk", "pca"],
            "metric_recall_at_1": [0.5, 0.6, 0.4, 0.4],
            "metric_map_at_r": [0.2, 0.25, 0.1, 0.1],
            "metric_nmi_geometric": [0.6, 0.7, None, None],
            "steps": [10, 10, 0, 0],
        }
    )
    return rows.assign(dataset=dataset, protocol="random", params=[params | changes] * 4)


def test_our_mean_follows_the_published_rows_of_its_method():
    table = beside(our_rows("aviary"), BASELINES, "aviary")
    place = table.index.get_loc("contrastive")
    assert (table.index[place - 2 : place] == "Contrastive").all()
    assert table.iloc[place].to_dict() == {
        **{"trunk": "resnet50 (imagenet)", "dim": "64", "R@1": "55.0", "MAP@R": "22.5"},
        **{"NMI": "65.0", "RP": "–", **{f"R@{k}": "–" for k in (2, 4, 8, 16, 32)}},
        **{"protocol": "random", "source": "this book, aviary", "certainty": "mean of 2 runs"},
    }
    untrained = table.loc["frozen_trunk"]
    assert (untrained["dim"], untrained["NMI"]) == ("–", "–")
    assert "pca" not in table.index  # nobody has published it


def test_joined_models_have_a_line_of_their_own_after_single_ones():
    rows = our_rows("aviary")
    joined = rows[:1].assign(method="contrastive_concatenated", metric_recall_at_1=0.75)
    table = beside(pd.concat([rows, joined]), BASELINES, "aviary")
    place = table.index.get_loc("contrastive_concatenated")
    assert table.index[place - 1] == "contrastive"
    assert table["R@1"].iloc[place - 1 : place + 1].tolist() == ["55.0", "75.0"]


def test_a_published_method_that_we_have_not_run_says_so():
    table = beside(our_rows("cub200_2011"), BASELINES, "cub200_2011")
    never = table[table["source"] == "no run of it here"]
    on_cub = {
        line["method"]
        for line in LINES
        if BASELINES in line["chapters"] and line["dataset"] == "cub200_2011"
    } - {""}
    assert set(never.index) == on_cub - {"contrastive", "frozen_trunk"}
    assert (never.drop(columns="source") == "–").all(axis=None)
    # All published rows are still there, those without a name of ours at the end.
    ours = {*never.index, "contrastive", "frozen_trunk"}
    assert sorted(set(table.index) - ours) == sorted(set(published(BASELINES, "cub200_2011").index))
    assert table.index[-1] == "SNR"


def test_frozen_trunks_and_weights_from_files_are_named():
    changes = {"CACHED_VIEWS": 4, "WEIGHTS": "data/weights/resnet50-swav.pth"}
    table = beside(our_rows("aviary", **changes), BASELINES, "aviary")
    assert table.loc["contrastive", "trunk"] == "resnet50 (swav), frozen"


def test_a_chapter_without_methods_of_ours_shows_what_is_published():
    found = beside(our_rows("aviary"), "06_slade_ablations", "aviary", "clusters")
    assert found["R@1"].tolist() == ["72.19", "72.75", "72.21", "73.19", "73.26"]


def test_wrong_names_are_refused_in_one_sentence():
    with pytest.raises(ValueError, match="dataset 'cub' is unknown; choose one of aviary"):
        published(BASELINES, "cub")
    with pytest.raises(ValueError, match="nothing for '01_evaluation'; it has 02_baseline_losses"):
        published("01_evaluation", "aviary")
    with pytest.raises(ValueError, match="no published part 'depth'; choose one of main, class_"):
        caveat("03_norm_softmax", "aviary", "depth")
    with pytest.raises(ValueError, match="these runs are of aviary, not of cars196"):
        beside(our_rows("aviary"), BASELINES, "cars196")


@pytest.mark.parametrize(
    ("old", "new"), [("", "\xff"), ("recall_at_1", "recall_at_1 x"), ("method", "way,")]
)
def test_a_line_that_does_not_fit_is_said_to_whom_added_it(old, new, tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    text = (PROJECT_ROOT / "book" / "published.csv").read_text().replace(old, new, 1)
    (tmp_path / "book" / "published.csv").write_text(text, encoding="latin-1", errors="replace")
    monkeypatch.setattr(module, "PROJECT_ROOT", tmp_path)
    with pytest.raises(
        ValueError, match=r"published\.csv cannot be read .*; correct the line added"
    ):
        published("02_baseline_losses", "cub200_2011")
