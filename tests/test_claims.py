"""Verdicts: hand-worked cases, false verdicts at the bounds, and how the ledger pairs results."""

import math
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dmlkit import claims
from dmlkit.claims import holm, judge, p_equivalent, p_value, rung_of, verdict
from dmlkit.intervals import Estimate, estimate
from dmlkit.simulation import SCHEMES, draw_scores, draw_splits
from tests.per_query import SPREAD, replicates


def difference(mean, error, n=30, draws=4000):
    """Return a difference of replicates that share no classes."""
    t = stats.t.ppf((np.arange(draws) + 0.5) / draws, n - 1)
    return Estimate(mean, mean + error * t, between=n * error**2, shared=0.0, n=n)


def test_holms_correction_on_a_worked_example():
    # Sorted .01 .02 .04 .5, times 4 3 2 1: .04 .06 .08 .5, none below an earlier one.
    assert holm([0.04, 0.01, 0.5, 0.02]) == pytest.approx([0.08, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("mean", "error", "direction", "expected"),
    [
        (0.05, 0.01, "greater", "held"),
        (-0.05, 0.01, "greater", "reversed"),
        (0.001, 0.002, "greater", "equivalent"),
        (0.02, 0.03, "greater", "not resolved"),
        (0.001, 0.002, "equivalent", "held"),
        (0.05, 0.01, "equivalent", "reversed"),
        (-0.05, 0.01, "equivalent", "reversed"),
        (0.012, 0.005, "equivalent", "not resolved"),
        (0.005, 0.002, "equivalent", "held"),
        (0.05, 0.01, "not_worse", "held"),
        (0.0, 0.004, "not_worse", "held"),
        (-0.05, 0.01, "not_worse", "reversed"),
        # Significantly below 0, but not shown to be below the bound of -0.01.
        (-0.011, 0.004, "not_worse", "not resolved"),
    ],
)
def test_verdicts_follow_from_the_difference_its_error_and_the_bound(
    mean, error, direction, expected
):
    found = difference(mean, error)
    p, p_equal = p_value(found, direction, 0.01), p_equivalent(found, 0.01)
    p_equal = p_equal if direction == "greater" else 1.0
    assert verdict(found, direction, 0.01, p, p_equal) == expected


def test_each_direction_has_the_p_value_of_what_was_found():
    found = difference(0.02, 0.01, n=30)
    t = stats.t(df=29)
    assert p_value(found, "greater", 0.01) == pytest.approx(2 * t.sf(2), rel=0.02)
    assert p_value(found, "not_worse", 0.01) == pytest.approx(2 * t.sf(3), abs=8e-4)
    # Two one-sided tests: the harder one is "below 0.01", and the difference is above it.
    assert p_equivalent(found, 0.01) == pytest.approx(t.sf(-1), rel=0.02)
    # So what may have been found is the opposite: above 0.01, by one standard error.
    assert p_value(found, "equivalent", 0.01) == pytest.approx(2 * t.sf(1), rel=0.02)
    assert p_value(difference(0.0, 0.004), "equivalent", 0.01) == pytest.approx(
        2 * t.sf(2.5), rel=0.05
    )


def test_claims_are_judged_by_paper_rung_and_available_methods(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "claims.csv").write_text(
        "claim,chapter,paper,first,second,metric,direction,delta,published,rungs,statement\n"
        "X1,one,P,a,b,map_at_r,greater,0.01,+2,drawn features,a beats b\n"
        "X2,one,P,a,c,map_at_r,greater,0.01,,drawn,c was not run\n"
        "X3,one,P,b,a,map_at_r,greater,0.01,,paper,another rung\n"
        "X4,two,P,a,b,map_at_r,greater,0.01,,drawn,another chapter\n"
    )
    monkeypatch.setattr(claims, "PROJECT_ROOT", tmp_path)
    results = {"a": replicates([0.5, 0.6, 0.7], spread=0.01), "b": replicates([0.2, 0.3, 0.4])}
    rows = pd.DataFrame(
        [{"run_id": f"{m}{s}", "method": m, "seed": s} for m in results for s in (2, 0, 1)]
    )
    by_class = {f"{m}{s}": results[m][s] for m in results for s in range(3)}

    judged = judge("one", "drawn", rows, by_class, overlap=0.0)

    assert judged["claim"].tolist() == ["X1"]
    assert judged.loc[0, "difference"] == pytest.approx(0.3, abs=0.01)
    assert judged.loc[0, "verdict"] == "held (demonstration)"
    found = judge("one", "features", rows, by_class, overlap=0.0)
    assert found["verdict"].tolist() == ["held"]
    # On the drawn rung the paper has two claims, of which one was not run and counts as 1.
    assert judged.loc[0, "p_holm"] == pytest.approx(2 * found.loc[0, "p_holm"])
    one_replicate = judge("one", "drawn", rows[rows["seed"] == 0], by_class, overlap=0.0)
    assert one_replicate.empty


@pytest.mark.parametrize(
    ("dataset", "weights", "views", "is_subset", "rung"),
    [
        ("aviary", "none", 0, True, "drawn"),
        ("butterflies", "none", 0, False, "drawn"),
        ("cub200_2010", "imagenet", 4, False, "features"),
        ("cub200_2010", "imagenet", 0, False, "birds"),
        ("cub200_2010", "imagenet", 4, True, "none"),
        ("cub200_2010", "none", 0, False, "none"),
        ("class_folder", "imagenet", 4, False, "none"),
        ("list_files", "imagenet", 4, False, "none"),
        ("cars196", "imagenet", 0, False, "paper"),
        ("nabirds", "imagenet", 0, False, "none"),
        ("omniglot", "none", 0, False, "omniglot"),
    ],
)
def test_the_rung_follows_from_data_weights_and_trunk(dataset, weights, views, is_subset, rung):
    assert rung_of(dataset, weights, views, is_subset=is_subset) == rung


def test_the_ledger_joins_all_profiles_in_the_order_of_the_list(tmp_path):
    def judged(profile, chapter, *names):
        folder = tmp_path / profile / chapter
        folder.mkdir(parents=True)
        lines = pd.DataFrame({"claim": names, "published": "", "verdict": "held"})
        lines.to_csv(folder / "claims.csv", index=False)

    assert claims.ledger([tmp_path]).empty
    judged("mini", "04_self_supervised_ranking", "A1a")
    judged("birds", "02_baseline_losses", "B1b", "B1a")
    judged("mini", "02_baseline_losses", "B1a")
    copy = tmp_path / "copy_of_the_project" / "book"
    copy.mkdir(parents=True)
    shutil.copy(claims.PROJECT_ROOT / "book" / "claims.csv", copy)
    found = claims.ledger([tmp_path / name for name in ("birds", "mini", "none", copy.parent.name)])
    assert list(zip(found["profile"], found["claim"], strict=True)) == [
        ("birds", "B1a"), ("mini", "B1a"), ("birds", "B1b"), ("mini", "A1a")
    ]  # fmt: skip
    assert found.loc[0, "chapter"] == "02_baseline_losses"


def test_the_projects_claims_are_complete_and_unique():
    table = pd.read_csv(claims.PROJECT_ROOT / "book" / "claims.csv", keep_default_na=False)
    assert table["claim"].is_unique
    assert table["direction"].isin(["greater", "equivalent", "not_worse"]).all()
    assert (table["delta"] > 0).all() and (table["statement"] != "").all()


def test_where_splits_overlap_a_verdict_needs_the_t_interval_too():
    # A spread of 2 points between 5 replicates: the error is 2 sqrt(1/5 + 1) = 2.19 points.
    draws = np.linspace(-0.04, -0.03, 4000)
    alone = Estimate(-0.035, draws, between=0.02**2, shared=0.0, n=5)
    both = Estimate(-0.035, draws, between=0.02**2, shared=0.0, n=5, overlap=1.0)
    assert alone.p_below(0) == pytest.approx(1 / 4001)
    assert both.p_below(0) == pytest.approx(stats.t.sf(3.5 / 2.19089, 4))
    assert both.p_above(0) == pytest.approx(1, abs=0.1)
    for direction in ("greater", "not_worse", "equivalent"):
        found = [verdict(d, direction, 0.01, p_value(d, direction, 0.01)) for d in (alone, both)]
        assert found == ["reversed", "not resolved"]
    # The draws are needed as well, however narrow the t interval is.
    wide = Estimate(-0.035, np.linspace(-0.1, 0.03, 4000), between=1e-8, shared=0.0, n=5, overlap=1)
    assert p_value(wide, "greater", 0.01) > 0.05
    # With ever more replicates 2 (1.96 + 0.84) points stay undetectable.
    assert both.detectable(math.inf) == pytest.approx(0.02 * (1.96 + 0.8416), rel=0.001)
    assert both.detectable() > alone.detectable()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_family_of_claims_without_any_effect_is_seldom_found_to_have_one(scheme):
    generator, false, false_by_replicates_alone = np.random.default_rng(0), [], []

    def draw(splits):
        return draw_scores(0.0, splits, SPREAD, generator, per_class=5)

    for _ in range(200):
        splits = draw_splits(scheme, 3, 50, generator)
        reference = draw(splits)  # in all six claims, so they are correlated
        found = [
            estimate([x | {"score": x["score"] - y["score"]} for x, y in pairs], "score", draws=500)
            for pairs in (zip(draw(splits), reference, strict=True) for _ in range(6))
        ]
        adjusted = holm([p_value(difference, "greater", 0.01) for difference in found])
        verdicts = {verdict(d, "greater", 0.01, p) for d, p in zip(found, adjusted, strict=True)}
        false.append(bool(verdicts & {"held", "reversed"}))
        t = [d.mean / np.sqrt(d.between / d.n) for d in found]
        false_by_replicates_alone.append(min(holm(2 * stats.t.sf(np.abs(t), 2))) < 0.05)
    # The standard error of 5 % of 200 is 1.5 %.
    assert np.mean(false) <= 0.08
    if scheme == "the same classes":
        assert np.mean(false_by_replicates_alone) > 0.2


@pytest.mark.parametrize(
    ("direction", "truth", "true_verdicts"),
    [
        ("greater", 0.0, {"equivalent", "not resolved"}),
        ("greater", 0.01, {"held", "not resolved"}),
        ("greater", -0.01, {"reversed", "not resolved"}),
        ("not_worse", -0.01, {"not resolved"}),
        ("equivalent", 0.01, {"not resolved"}),
        ("equivalent", -0.01, {"not resolved"}),
    ],
)
@pytest.mark.parametrize("error", [0.001, 0.0035, 0.02])
def test_a_ledger_at_the_edge_of_what_it_claims_is_seldom_wrong(
    direction, truth, true_verdicts, error
):
    generator, false = np.random.default_rng(0), []
    for _ in range(500):
        found = []
        for _ in range(6):
            replicates = generator.normal(truth, error * np.sqrt(10), size=10)
            found.append(difference(replicates.mean(), stats.sem(replicates), n=10, draws=400))
        adjusted = holm([p_value(d, direction, 0.01) for d in found])
        equal = [p_equivalent(d, 0.01) if direction == "greater" else 1.0 for d in found]
        tested = zip(found, adjusted, holm(equal), strict=True)
        verdicts = {verdict(d, direction, 0.01, p, p_equal) for d, p, p_equal in tested}
        false.append(bool(verdicts - true_verdicts))
    # The standard error of 5 % of 500 is 1 %.
    assert np.mean(false) <= 0.08


def test_what_is_no_claim_is_refused():
    found = difference(0.02, 0.01)
    with pytest.raises(ValueError, match="no direction 'less'; choose greater"):
        p_value(found, "less", 0.01)
    with pytest.raises(ValueError, match="delta = 1 is a fraction of the metric; one point is"):
        p_value(found, "equivalent", 1)


def ledger(tmp_path, monkeypatch, results, rung="features"):
    """Judge {method: {seed: results}} on claims X0, X1 ... that each beats the first method."""
    (tmp_path / "book").mkdir(exist_ok=True)
    names = list(results)
    lines = [
        f"X{i},one,P,{first},{names[0]},map_at_r,greater,0.01,,{rung},text\n"
        for i, first in enumerate(names[1:])
    ]
    header = "claim,chapter,paper,first,second,metric,direction,delta,published,rungs,statement\n"
    (tmp_path / "book" / "claims.csv").write_text(header + "".join(lines))
    monkeypatch.setattr(claims, "PROJECT_ROOT", tmp_path)
    runs = [(method, seed, f"{method}-{seed}") for method in results for seed in results[method]]
    rows = pd.DataFrame(runs, columns=["method", "seed", "run_id"])
    by_class = {run_id: results[method][seed] for method, seed, run_id in runs}
    return judge("one", rung, rows, by_class, overlap=0.0)


def test_verdicts_are_those_after_holms_correction(tmp_path, monkeypatch):
    # Differences of 1, 2 and 3 over a spread that makes one of them significant by itself.
    base = replicates([0.5] * 4)
    better = replicates([0.5 + d for d in (0.01, 0.02, 0.03, 0.04)])
    alone = {"base": dict(enumerate(base)), "a": dict(enumerate(better))}
    judged = ledger(tmp_path, monkeypatch, alone)
    assert 0.025 < judged.loc[0, "p"] < 0.05
    assert judged.loc[0, "verdict"] == "held"
    among_others = alone | {"b": dict(enumerate(base)), "c": dict(enumerate(base))}
    judged = ledger(tmp_path, monkeypatch, among_others)
    assert judged.loc[0, "p"] < 0.05 < judged.loc[0, "p_holm"]
    assert judged.loc[0, "verdict"] != "held"


def test_replicates_are_paired_by_seed_and_one_that_is_missing_is_left_out(tmp_path, monkeypatch):
    # Seeds differ by 0.1 each, the methods by 0.02: another pairing would be seen.
    means = {seed: 0.1 + 0.02 * seed for seed in (1, 2, 3, 10)}
    base = dict(zip(means, replicates(means.values(), spread=0.01), strict=True))
    better = {seed: r | {"map_at_r": r["map_at_r"] + 0.02} for seed, r in base.items()}
    shuffled = {seed: better[seed] for seed in (10, 3, 1)}  # and seed 2 is missing
    judged = ledger(tmp_path, monkeypatch, {"base": base, "a": shuffled, "b": {2: better[2]}})
    assert judged["claim"].tolist() == ["X0"]  # b has one replicate in common
    assert (judged.loc[0, "n"], judged.loc[0, "difference"]) == (3, pytest.approx(0.02))
