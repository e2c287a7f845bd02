"""Intervals and verdicts: hand-worked cases, known distributions, and what must be refused."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dmlkit import claims
from dmlkit.claims import (
    Estimate,
    estimate,
    holm,
    judge,
    p_value,
    paired_difference,
    rung_of,
    verdict,
)


def replicates(means, *, spread=0.0, classes=8, per_class=5, seed=0, shared=False):
    """Return per-query results of one method, a replicate for each mean."""
    generator = np.random.default_rng(seed)
    labels = np.arange(classes).repeat(per_class)
    return [
        {
            "labels": labels,
            "classes": np.array([f"{0 if shared else i}-{c}" for c in range(classes)]),
            "map_at_r": mean + spread * generator.standard_normal(len(labels)),
        }
        for i, mean in enumerate(means)
    ]


def one(values, names, labels=None):
    """Return the per-query results of one replicate, by default one query per class."""
    labels = np.arange(len(values)) if labels is None else labels
    return {"labels": np.array(labels), "classes": np.array(names), "m": np.array(values, float)}


def difference(mean, error, n=30):
    """Return a difference of replicates that share no classes."""
    t = stats.t.ppf((np.arange(4000) + 0.5) / 4000, n - 1)
    return Estimate(mean, mean + error * t, between=n * error**2, shared=0.0, n=n)


def test_the_mean_difference_is_the_mean_over_replicates_of_paired_differences():
    found = paired_difference(replicates([0.5, 0.7, 0.9]), replicates([0.4, 0.4, 0.4]), "map_at_r")
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    assert found.n == 3


def test_with_classes_of_their_own_replicates_give_the_textbook_interval():
    first, second = replicates([0.5, 0.7, 0.9], spread=0.1), replicates([0.4, 0.4, 0.4])
    found = paired_difference(first, second, "map_at_r")
    means = [one["map_at_r"].mean() - 0.4 for one in first]
    expected = stats.t.interval(0.95, df=2, loc=np.mean(means), scale=stats.sem(means))
    assert found.shared == 0
    assert found.t_interval() == pytest.approx(expected)
    assert found.interval() == pytest.approx(expected, rel=0.02)
    assert found.p_above(0) == pytest.approx(stats.ttest_1samp(means, 0).pvalue / 2, rel=0.05)


def test_shared_classes_on_a_worked_example():
    # Means 2 and 4, their variance 2. Classes a and b pull the first by -1/2 and 1/2 and the second
    # by -1 and 1: the two together covary by 1/2 + 1/2, times 2 / (2 - 1) for two classes.
    found = estimate([one([1, 3], "ab"), one([2, 6], "ab")], "m")
    assert (found.mean, found.between, found.shared) == pytest.approx((3, 2, 2))
    # Names say which class is which, not places: c is another class, and the order is the other.
    found = estimate([one([1, 3], "ab"), one([6, 2], "bc")], "m")
    # Only b is in both, 1/2 by 1; there are three classes, so times 3 / 2.
    assert (found.mean, found.between, found.shared) == pytest.approx((3, 2, 0.75))


def test_with_the_same_classes_and_results_only_the_classes_are_uncertain():
    values = np.random.default_rng(0).normal(size=50)
    found = estimate([one(values, [str(i) for i in range(50)])] * 4, "m")
    assert (found.between, found.shared) == pytest.approx((0, values.var(ddof=1) / 50))
    assert found.draws.std() == pytest.approx(stats.sem(values), rel=0.05)
    assert found.draws.mean() == pytest.approx(values.mean(), abs=0.01)


def test_opposite_pulls_of_a_class_do_not_make_the_variance_smaller():
    found = estimate([one([0, 1], "ab"), one([1, 0], "ab")], "m")
    assert found.shared == 0


def test_a_class_counts_by_its_queries_and_they_do_not_count_as_classes():
    # Class a has three queries of 1, class b one of 0: the mean is 3/4; the pulls are 3/16 up
    # and 3/16 down, so that the variance of the classes is 2 / (2 - 1) times 2 x (3/16)^2.
    found = estimate([one([1, 1, 1, 0], "ab", [0, 0, 0, 1])] * 2, "m")
    assert (found.mean, found.shared) == pytest.approx((0.75, 4 * (3 / 16) ** 2))


def test_of_a_single_replicate_the_interval_shows_the_classes_alone():
    values = np.random.default_rng(0).normal(size=50)
    found = estimate([one(values, [str(i) for i in range(50)])], "m")
    half = 1.96 * stats.sem(values)
    assert found.interval() == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_skewed_classes_give_a_skewed_interval():
    values = np.array([0.0] * 19 + [1.0])
    found = estimate([one(values, [str(i) for i in range(20)])], "m")
    low, high = found.interval()
    assert high - found.mean > 1.5 * (found.mean - low)


def test_the_correction_for_shared_classes_widens_the_t_interval_as_nadeau_and_bengio_say():
    first, second = replicates([0.5, 0.7, 0.9]), replicates([0.4, 0.4, 0.4])
    plain = paired_difference(first, second, "map_at_r").t_interval()
    # Halves of one set: 1/3 becomes 1/3 + 1.
    wide = paired_difference(first, second, "map_at_r", overlap=1.0).t_interval()
    assert wide[1] - wide[0] == pytest.approx(2 * (plain[1] - plain[0]))


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
    # With ever more replicates 2 (1.96 + 0.84) points stay undetectable.
    assert both.detectable(math.inf) == pytest.approx(0.02 * (1.96 + 0.8416), rel=0.001)
    assert both.detectable() > alone.detectable()


SCHEMES = ["new classes", "random halves", "the same classes"]


def draw_splits(generator, scheme, n):
    """Return for each replicate which 50 classes it tests; halves are those of 100."""
    if scheme == "new classes":
        return [np.arange(50) + 50 * replicate for replicate in range(n)]
    if scheme == "random halves":
        return [generator.permutation(100)[:50] for _ in range(n)]
    return [np.arange(50)] * n


def scores(generator, splits):
    """Return per-query scores of a method whose true mean is 0, five queries a class."""
    of_class = generator.normal(0, 0.1, 50 * max(2, len(splits)))
    sets = []
    for picked in splits:
        of_replicate, of_both = generator.normal(0, 0.005), generator.normal(0, 0.03, 50)
        expected = of_class[picked] + of_replicate + of_both
        values = generator.normal(expected[:, None], 0.1, (50, 5))
        sets.append(one(values.ravel(), picked.astype(str), np.arange(50).repeat(5)))
    return sets


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_interval_covers_the_truth_about_as_often_as_it_says(scheme, n):
    generator = np.random.default_rng(0)
    covered, by_replicates_alone = [], []
    for _ in range(400):
        found = estimate(scores(generator, draw_splits(generator, scheme, n)), "m", draws=400)
        for hits, (low, high) in (
            (covered, found.interval()),
            (by_replicates_alone, found.t_interval()),
        ):
            hits.append(low <= 0 <= high)
    # The standard error of 95 % of 400 is 1.1 %.
    assert 0.92 <= np.mean(covered) <= 0.985
    if scheme == "the same classes":
        assert np.mean(by_replicates_alone) < 0.85


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_family_of_claims_without_any_effect_is_seldom_found_to_have_one(scheme):
    generator, false, false_by_replicates_alone = np.random.default_rng(0), [], []
    for _ in range(200):
        splits = draw_splits(generator, scheme, 3)
        reference = scores(generator, splits)  # in all six claims, so they are correlated
        found = [
            estimate([x | {"m": x["m"] - y["m"]} for x, y in pairs], "m", draws=500)
            for pairs in (zip(scores(generator, splits), reference, strict=True) for _ in range(6))
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


def test_the_detectable_difference_is_the_one_found_four_times_in_five():
    # Without shared classes the textbook knows the power: that of the noncentral t distribution.
    alone = Estimate(0.0, np.zeros(1), between=0.03**2, shared=0.0, n=5)
    for n in (3, 5, 20):
        shift = alone.detectable(n) / (0.03 / np.sqrt(n))
        found = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, shift)
        assert found == pytest.approx(0.8, abs=0.005)
    assert alone.detectable() == alone.detectable(5)
    assert alone.detectable(math.inf) == pytest.approx(0, abs=1e-9)


def test_classes_that_replicates_share_leave_something_undetectable_however_many_there_are():
    found = Estimate(0.0, np.zeros(1), between=0.03**2, shared=0.01**2, n=5)
    detectable = [found.detectable(n) for n in (3, 5, 20, math.inf)]
    assert detectable == sorted(detectable, reverse=True)
    assert detectable[-1] == pytest.approx((1.96 + 0.8416) * 0.01, rel=0.001)


def test_equal_methods_have_no_difference_and_no_significance():
    same = replicates([0.5, 0.6], spread=0.1, shared=True)
    found = paired_difference(same, same, "map_at_r")
    assert (found.mean, found.interval(), found.t_interval()) == (0, (0, 0), (0, 0))
    assert p_value(found, "greater", 0.01) == 1.0
    assert found.detectable() == 0


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
    assert verdict(found, direction, 0.01, p_value(found, direction, 0.01)) == expected


def test_each_direction_has_the_p_value_of_what_it_says():
    found = difference(0.02, 0.01, n=30)
    t = stats.t(df=29)
    assert p_value(found, "greater", 0.01) == pytest.approx(2 * t.sf(2), rel=0.02)
    assert p_value(found, "not_worse", 0.01) == pytest.approx(t.sf(3), abs=4e-4)
    # Two one-sided tests: the harder one is "below 0.01", and the difference is above it.
    assert p_value(found, "equivalent", 0.01) == pytest.approx(t.sf(-1), rel=0.02)


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
    found = judge("one", "features", rows, per_query, overlap=0.0)
    assert found["verdict"].tolist() == ["held"]
    # On the drawn rung the paper has two claims, of which one was not run and counts as 1.
    assert judged.loc[0, "p_holm"] == pytest.approx(2 * found.loc[0, "p_holm"])
    one_replicate = judge("one", "drawn", rows[rows["seed"] == 0], per_query, overlap=0.0)
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


def test_the_projects_claims_are_complete_and_unique():
    table = pd.read_csv(claims.PROJECT_ROOT / "book" / "claims.csv", keep_default_na=False)
    assert table["claim"].is_unique
    assert table["direction"].isin(["greater", "equivalent", "not_worse"]).all()
    assert (table["delta"] > 0).all() and (table["statement"] != "").all()
