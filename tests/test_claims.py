"""Intervals and verdicts: hand-worked cases, known distributions, and what must be refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dmlkit import claims
from dmlkit.claims import (
    Difference,
    hierarchical_bootstrap,
    holm,
    judge,
    paired_difference,
    rung_of,
    standard_error,
    verdict,
)


def replicates(means, *, spread=0.0, classes=8, per_class=5, seed=0):
    """Return per-query results of one method, a replicate for each mean."""
    generator = np.random.default_rng(seed)
    labels = np.arange(classes).repeat(per_class)
    return [
        {"labels": labels, "map_at_r": mean + spread * generator.standard_normal(len(labels))}
        for mean in means
    ]


def difference(mean, low, high):
    return Difference(mean, low, high, low, high, 0.01, (low, high), 0.1, 5)


def test_the_mean_difference_is_the_mean_over_replicates_of_paired_differences():
    found = paired_difference(replicates([0.5, 0.7, 0.9]), replicates([0.4, 0.4, 0.4]), "map_at_r")
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    assert found.n == 3


def test_without_variation_within_replicates_the_t_interval_is_the_textbook_one():
    first, second = replicates([0.5, 0.7, 0.9]), replicates([0.4, 0.4, 0.4])
    found = paired_difference(first, second, "map_at_r")
    expected = stats.t.interval(0.95, df=2, loc=0.3, scale=stats.sem([0.1, 0.3, 0.5]))
    assert (found.t_low, found.t_high) == pytest.approx(expected)
    textbook = stats.ttest_1samp([0.1, 0.3, 0.5], 0).pvalue
    assert found.p >= textbook - 1e-9  # the larger of the bootstrap's and the t test's


def test_the_correction_for_shared_classes_widens_the_error_as_nadeau_and_bengio_say():
    means = np.array([0.1, 0.2, 0.4])
    plain = standard_error(means, 0.0)
    assert plain == pytest.approx(means.std(ddof=1) / np.sqrt(3))
    # Halves of one set: 1/3 becomes 1/3 + 1.
    assert standard_error(means, 1.0) == pytest.approx(plain * 2)


def test_the_bootstrap_of_constant_values_is_constant():
    sets = [(np.array([0, 0, 1]), np.full(3, 0.25)), (np.array([0, 1, 2]), np.full(3, 0.25))]
    assert np.allclose(hierarchical_bootstrap(sets, draws=50), 0.25)


def test_the_bootstrap_takes_classes_as_the_unit_and_not_queries():
    # Two classes, one all right and one all wrong: a resample holds 0, 1 or 2 right ones.
    sets = [(np.array([0] * 10 + [1] * 10), np.array([1.0] * 10 + [0.0] * 10))]
    draws = hierarchical_bootstrap(sets, draws=4000)
    values, counts = np.unique(draws, return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_the_bootstrap_takes_replicates_as_a_unit_too():
    # Two replicates, constant within: their mean is drawn 0, 1/2 or 1.
    sets = [(np.arange(4), np.zeros(4)), (np.arange(4), np.ones(4))]
    draws = hierarchical_bootstrap(sets, draws=4000)
    assert [(draws == v).mean() for v in (0, 0.5, 1)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_a_replicate_drawn_twice_resamples_its_classes_independently():
    # One replicate picked for both slots has two independent class draws, so quarters occur.
    labels, values = np.array([0, 1]), np.array([0.0, 1.0])
    draws = hierarchical_bootstrap([(labels, values), (labels, values)], draws=2000)
    assert {0.0, 0.25, 0.5, 0.75, 1.0} == set(np.unique(draws))


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    labels, covered = np.arange(20).repeat(4), []
    for trial in range(100):
        sets = [
            (labels, generator.normal(0, 0.1) + generator.normal(0, 0.3, 20).repeat(4))
            for _ in range(10)
        ]
        low, high = np.quantile(hierarchical_bootstrap(sets, draws=400, seed=trial), [0.025, 0.975])
        covered.append(low <= 0 <= high)
    assert np.mean(covered) >= 0.9


def test_equal_methods_have_no_difference_and_no_significance():
    same = replicates([0.5, 0.6], spread=0.1)
    found = paired_difference(same, same, "map_at_r")
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1.0)


def test_other_queries_and_single_replicates_are_refused():
    with pytest.raises(ValueError, match="not tested on the same queries"):
        paired_difference(replicates([0, 1]), replicates([0, 1], classes=9), "map_at_r")
    with pytest.raises(ValueError, match="at least two"):
        paired_difference(replicates([0]), replicates([1]), "map_at_r")


def test_holms_correction_on_a_worked_example():
    # Sorted .01 .02 .04 .5, times 4 3 2 1: .04 .06 .08 .5, none below an earlier one.
    assert holm([0.04, 0.01, 0.5, 0.02]) == pytest.approx([0.08, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("found", "direction", "p", "expected"),
    [
        (difference(0.05, 0.02, 0.08), "greater", 0.01, "held"),
        (difference(-0.05, -0.08, -0.02), "greater", 0.01, "reversed"),
        (difference(0.0, -0.005, 0.005), "greater", 0.8, "equivalent"),
        (difference(0.02, -0.05, 0.09), "greater", 0.5, "not resolved"),
        (difference(0.0, -0.005, 0.005), "equivalent", 0.8, "held"),
        (difference(0.05, 0.03, 0.07), "equivalent", 0.01, "reversed"),
        (difference(0.005, 0.001, 0.02), "equivalent", 0.01, "not resolved"),
        (difference(0.05, -0.005, 0.1), "not_worse", 0.2, "held"),
        (difference(-0.05, -0.08, -0.02), "not_worse", 0.01, "reversed"),
        (difference(-0.005, -0.02, 0.01), "not_worse", 0.4, "not resolved"),
    ],
)
def test_verdicts_follow_from_the_interval_the_bound_and_the_direction(
    found, direction, p, expected
):
    assert verdict(found, direction, 0.01, p) == expected


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
    per_query = {f"{m}{s}": results[m][s] for m in results for s in range(3)}

    judged = judge("one", "drawn", rows, per_query, overlap=0.0)

    assert judged["claim"].tolist() == ["X1"]
    assert judged.loc[0, "difference"] == pytest.approx(0.3, abs=0.01)
    assert judged.loc[0, "verdict"] == "held (demonstration)"
    assert judge("one", "features", rows, per_query, overlap=0.0)["verdict"].tolist() == ["held"]


@pytest.mark.parametrize(
    ("dataset", "views", "rung"),
    [("aviary", 0, "drawn"), ("cub200_2010", 4, "features"), ("cub200_2010", 0, "birds")],
)
def test_the_rung_follows_from_data_and_trunk(dataset, views, rung):
    assert rung_of(dataset, views) == rung


def test_the_projects_claims_are_complete_and_unique():
    table = pd.read_csv(claims.PROJECT_ROOT / "book" / "claims.csv", keep_default_na=False)
    assert table["claim"].is_unique
    assert table["direction"].isin(["greater", "equivalent", "not_worse"]).all()
    assert (table["delta"] > 0).all() and (table["statement"] != "").all()
