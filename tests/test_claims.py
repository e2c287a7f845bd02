"""Intervals and verdicts: hand-worked cases, known distributions, and what must be refused."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dmlkit import claims
from dmlkit.claims import (
    Difference,
    bootstrap_means,
    holm,
    judge,
    p_value,
    paired_difference,
    rung_of,
    standard_error,
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
    """Return a difference whose two methods agree."""
    draws = stats.norm(mean, error).ppf((np.arange(4000) + 0.5) / 4000) if error else None
    return Difference(mean, np.full(4000, mean) if draws is None else draws, error, n)


def test_the_mean_difference_is_the_mean_over_replicates_of_paired_differences():
    found = paired_difference(replicates([0.5, 0.7, 0.9]), replicates([0.4, 0.4, 0.4]), "map_at_r")
    assert found.mean == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    assert found.n == 3


def test_without_variation_within_replicates_the_t_interval_is_the_textbook_one():
    first, second = replicates([0.5, 0.7, 0.9]), replicates([0.4, 0.4, 0.4])
    found = paired_difference(first, second, "map_at_r")
    expected = stats.t.interval(0.95, df=2, loc=0.3, scale=stats.sem([0.1, 0.3, 0.5]))
    assert found.t_interval() == pytest.approx(expected)


def test_the_correction_for_shared_classes_widens_the_error_as_nadeau_and_bengio_say():
    means = np.array([0.1, 0.2, 0.4])
    plain = standard_error(means, 0.0)
    assert plain == pytest.approx(means.std(ddof=1) / np.sqrt(3))
    # Halves of one set: 1/3 becomes 1/3 + 1.
    assert standard_error(means, 1.0) == pytest.approx(plain * 2)


def test_the_bootstrap_of_constant_values_is_constant():
    sets = [one([0.25] * 3, "aab"[:2], [0, 0, 1]), one([0.25] * 3, "cde")]
    assert np.allclose(bootstrap_means(sets, "m", draws=50), 0.25)


def test_the_bootstrap_takes_classes_as_the_unit_and_not_queries():
    # Two classes, one all right and one all wrong: a resample holds 0, 1 or 2 right ones.
    sets = [one([1] * 10 + [0] * 10, "ab", [0] * 10 + [1] * 10)]
    values, counts = np.unique(bootstrap_means(sets, "m", draws=4000), return_counts=True)
    assert values.tolist() == [0.0, 0.5, 1.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_the_bootstrap_takes_replicates_as_a_unit_too():
    # Two replicates, constant within: their mean is drawn 0, 1/2 or 1.
    sets = [one([0] * 4, "abcd"), one([1] * 4, "efgh")]
    draws = bootstrap_means(sets, "m", draws=4000)
    assert [(draws == v).mean() for v in (0, 0.5, 1)] == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_a_class_that_two_replicates_test_is_drawn_equally_often_in_both():
    # The same two classes in both replicates: what is drawn is one sample of classes, so the
    # mean is 0, 1/2 or 1 and never a quarter. With other classes it can be a quarter.
    shared = [one([0, 1], "ab"), one([0, 1], "ab")]
    assert set(np.unique(bootstrap_means(shared, "m"))) == {0.0, 0.5, 1.0}
    distinct = [one([0, 1], "ab"), one([0, 1], "cd")]
    assert 0.25 in np.unique(bootstrap_means(distinct, "m"))


@pytest.mark.parametrize("scheme", ["new classes", "random halves", "the same classes"])
def test_an_interval_covers_the_truth_about_as_often_as_it_says(scheme):
    generator = np.random.default_rng(0)
    covered = []
    for trial in range(60):
        population = generator.normal(0, 0.3, 400)  # an effect per class, the truth being 0
        order = generator.permutation(400)[:40]
        sets = []
        for replicate in range(8):
            if scheme == "new classes":
                picked = np.arange(20) + 20 * replicate
            elif scheme == "random halves":
                picked = generator.permutation(order)[:20]
            else:
                picked = order[:20]
            values = population[picked] + generator.normal(0, 0.05)
            sets.append(one(values, [str(c) for c in picked]))
        draws = bootstrap_means(sets, "m", draws=400, seed=trial)
        low, high = np.quantile(draws, [0.025, 0.975])
        covered.append(low <= 0 <= high)
    assert np.mean(covered) >= 0.88


def test_equal_methods_have_no_difference_and_no_significance():
    same = replicates([0.5, 0.6], spread=0.1)
    found = paired_difference(same, same, "map_at_r")
    assert (found.mean, found.bootstrap_interval(), found.t_interval()) == (0, (0, 0), (0, 0))
    assert p_value(found, "greater", 0.01) == 1.0


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
    assert p_value(found, "not_worse", 0.01) == pytest.approx(t.sf(3), rel=0.02)
    # Two one-sided tests: the harder one is "below 0.01", and the difference is above it.
    assert p_value(found, "equivalent", 0.01) == pytest.approx(t.sf(-1), rel=0.02)


def test_the_worse_of_bootstrap_and_t_test_counts():
    certain = Difference(0.1, np.full(4000, 0.1), error=0.1, n=3)
    assert certain.p_above(0) == pytest.approx(stats.t.sf(1, 2))
    scattered = Difference(0.1, np.linspace(-1, 1, 4000), error=0.001, n=3)
    assert scattered.p_above(0) == pytest.approx(0.5, abs=0.01)


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
