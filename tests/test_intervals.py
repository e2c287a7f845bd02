"""Intervals: hand-worked cases, known distributions, simulations, and what must be refused."""

import math

import numpy as np
import pytest
from scipy import stats

from dmlkit.intervals import Estimate, class_means, estimate, paired_difference
from dmlkit.simulation import SCHEMES, draw_scores, draw_splits
from tests.per_query import SPREAD, replicates


def one(values, names, labels=None):
    """Return the per-query results of one replicate, by default one query per class."""
    labels = np.arange(len(values)) if labels is None else labels
    return {
        "labels": np.array(labels),
        "classes": np.array(list(names)),
        "m": np.array(values, float),
    }


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


def test_means_of_classes_of_unlike_sizes_give_the_same_estimates_as_their_queries():
    generator = np.random.default_rng(0)
    labels = np.arange(12).repeat(np.arange(12))  # nobody asks for class 0
    first, second = (
        [one(generator.random(66), "abcdefghijkl", labels) for _ in range(3)] for _ in range(2)
    )
    summed = [[class_means(scores) for scores in method] for method in (first, second)]
    assert summed[0][0]["labels"].tolist() == summed[0][0]["queries"].tolist() == [*range(1, 12)]
    expected, found = paired_difference(first, second, "m"), paired_difference(*summed, "m")
    for name in ("mean", "between", "shared", "draws"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-6)


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


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_interval_covers_the_truth_about_as_often_as_it_says(scheme, n):
    generator = np.random.default_rng(0)
    covered, by_replicates_alone = [], []
    for _ in range(400):
        splits = draw_splits(scheme, n, 50, generator)
        scores = draw_scores(0.0, splits, SPREAD, generator, per_class=5)
        found = estimate(scores, "score", draws=400)
        for hits, (low, high) in (
            (covered, found.interval()),
            (by_replicates_alone, found.t_interval()),
        ):
            hits.append(low <= 0 <= high)
    # The standard error of 95 % of 400 is 1.1 %.
    assert 0.925 <= np.mean(covered) <= 0.985
    if scheme == "the same classes":
        assert np.mean(by_replicates_alone) < 0.85


def test_few_classes_widen_the_interval_as_few_replicates_do():
    values = np.random.default_rng(0).normal(size=5)
    found = estimate([one(values, "abcde")] * 3, "m")
    low, high = found.interval()
    # A t interval over five classes is 2.776 standard errors wide, not 1.960.
    assert high - low == pytest.approx(2 * 2.776 * stats.sem(values), rel=0.2)


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
    assert found.p_above(0) == found.p_below(0) == 1.0
    assert found.detectable() == 0


def test_other_queries_and_single_replicates_are_refused():
    with pytest.raises(ValueError, match="in replicate 0 the labels of the two methods differ"):
        paired_difference(replicates([0, 1]), replicates([0, 1], classes=9), "map_at_r")
    with pytest.raises(ValueError, match="at least two"):
        paired_difference(replicates([0]), replicates([1]), "map_at_r")


GOOD = {"labels": np.array([0, 0, 1]), "classes": np.array(["a", "b"]), "m": np.ones(3)}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"m": np.array([1.0, np.nan, 1.0])}, "m of query 1 in replicate 1 is nan; score it again"),
        ({"m": np.array([1.0, np.inf, 1.0])}, "m of query 1 in replicate 1 is inf"),
        ({"m": np.ones(2)}, r"m \(2,\) with labels \(3,\); give one value and one label"),
        ({"m": np.ones(0), "labels": np.zeros(0, int)}, "at least one query"),
        ({"classes": np.array(["a", "a"])}, "2 class names of which 1 differ"),
        (
            {"labels": np.array([0, 0, 2])},
            "labels of replicate 1 should be places in its 2 classes",
        ),
        ({"labels": np.array([0.0, 0.0, 1.0])}, "should be places"),
    ],
)
def test_results_from_which_nonsense_would_follow_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        estimate([GOOD, GOOD | changed], "m")


def test_other_bad_requests_say_what_is_wrong():
    with pytest.raises(ValueError, match="there is no metric 'R@1'; these results have m"):
        estimate([GOOD], "R@1")
    with pytest.raises(ValueError, match="no replicates"):
        estimate([], "m")
    with pytest.raises(ValueError, match="a is the only class"):
        estimate([one([1, 2], "a", [0, 0])], "m")
    found = estimate([GOOD, GOOD], "m")
    with pytest.raises(ValueError, match="level = 95 is not between 0 and 1"):
        found.interval(95)
    with pytest.raises(ValueError, match="n = 1"):
        found.detectable(1)
    with pytest.raises(ValueError, match="power = 2"):
        found.detectable(power=2)
