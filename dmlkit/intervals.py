"""How far a mean over replicates, or a difference of two methods, may be off.

A result varies between replicates (a class split and a seed) and between the classes tested, and
both are samples. The mean over n replicates therefore has the variance ::

    between / n + shared

*between* is the variance between replicates, as in a textbook t interval. That interval would be
right if replicates were independent; they are not when they test the same classes, which are
lucky or unlucky in all of them. *Shared* is that covariance of two replicates, estimated from the
classes that both test (what Cameron, Gelbach and Miller, 2011, do for two-way clusters): zero
where every replicate has classes of its own, and all the uncertainty about other classes where
only the seed changes.

Intervals and p values come from one set of bootstrap draws, each the sum of two parts. Classes are
resampled with all their queries in all replicates (Owen, 2007), and the spread is scaled to the
square root of *shared*. Three or five replicates are too few to be resampled, which gives too
narrow and lumpy a spread (Hesterberg, 2015); their part is drawn from the t distribution with
n - 1 degrees of freedom, so that without shared classes the interval is the textbook one. (The
sum of two such parts is Fisher's, 1935, for means with unequal variances.) With few classes the
spread of their part is uncertain too, and is widened as t is beside the normal distribution.
Simulated with the variances of our own runs and with extreme ones, n being 3, 5 or 10, 95 %
intervals hold the truth in 93 to 98 % of the cases from 50 classes on, and with 5 to 20 classes
still in 89 to 98; chapter 1 and ``tests/test_intervals.py`` repeat a part of it. The gallery is
held fixed.

One thing is not in them: random splits of one set share training classes too, and nothing in the
results tells how much of what replicates differ by comes from there. The t interval of Nadeau and
Bengio (2003), shown beside, is wide enough if all does, and otherwise two or three times too wide.
A verdict on such splits needs both, so that it stands whatever the answer.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy import optimize, stats

DRAWS = 4000  # bootstrap draws; a p value cannot be smaller than 1 / (DRAWS + 1)
# Of one replicate: labels (Q,) int, the place of each query's class in classes (C,), which holds
# a name per class; metrics (Q,) by name; and, where a line is the mean of several queries of its
# class, how many: queries (Q,) int.
Scores = dict[str, np.ndarray]
ABOUT_LINES = ("labels", "classes", "queries")  # what is no metric in them


@dataclass(frozen=True)
class Estimate:
    """A mean over replicates, of a method or of a difference of two, in the metric's own unit.

    Args:
        mean: mean over replicates.
        draws: (D,) bootstrap draws of it.
        between: variance between replicates, 0 for a single one.
        shared: covariance of two replicates through the classes that both test.
        n: replicates.
        overlap: share that Nadeau and Bengio add to 1/n, see ``estimate``.
        num_classes: how many classes were tested in all.
    """

    mean: float
    draws: np.ndarray = field(repr=False)
    between: float
    shared: float
    n: int
    overlap: float = 0.0
    num_classes: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds ``level``, a fraction, of the bootstrap draws."""
        _check_fraction("level", level)
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def t_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the t interval over replicates, corrected as by Nadeau and Bengio (2003).

        NaN for a single replicate.
        """
        _check_fraction("level", level)
        half = float(stats.t.ppf((1 + level) / 2, self.n - 1) * self._t_error(self.n))
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Return the one-sided p value of "larger than ``bound``".

        That of the draws or, where splits overlap, of the t test if it is larger.
        """
        return self._p(self.mean - bound, (self.draws <= bound).sum())

    def p_below(self, bound: float) -> float:
        """Return the one-sided p value of "smaller than ``bound``"."""
        return self._p(bound - self.mean, (self.draws >= bound).sum())

    def _p(self, distance: float, draws_beyond: int) -> float:
        p = float((draws_beyond + 1) / (len(self.draws) + 1))
        error = self._t_error(self.n)
        if not (self.overlap and error):
            return p
        return max(p, float(stats.t.sf(distance / error, self.n - 1)))

    def _t_error(self, n: float) -> float:
        """Return the standard error of n replicates by Nadeau and Bengio (2003)."""
        return float(np.sqrt(self.between * (1 / n + self.overlap)))

    def detectable(self, n: float | None = None, *, power: float = 0.8) -> float:
        """Return the true difference that a two-sided test at 5 % would find with ``power``.

        Where splits overlap that is the t test's (the sum of two quantiles, a close bound), if it
        needs more than the draws do.

        Args:
            n: planned replicates of the same kind, at least two, by default as many as there are;
                ``math.inf`` for what the test classes alone leave unresolved.
            power: chance of finding it, a fraction.

        Raises:
            ValueError: fewer than two replicates, or a power outside (0, 1).
        """
        n = self.n if n is None else n
        if n < 2:
            raise ValueError(f"n = {n}: what differs between replicates takes at least two")
        _check_fraction("power", power)
        freedom = min(n - 1, 10**6)
        # The half width of the interval varies as much as the estimate of ``between`` does.
        chances = (np.arange(1000) + 0.5) / 1000
        estimated = self.between / n * stats.chi2.ppf(chances, freedom) / freedom
        t, of_classes = stats.t.ppf(0.975, freedom), _width(self.num_classes)
        half = np.sqrt(t**2 * estimated + of_classes**2 * self.shared)
        error = np.sqrt(self.between / n + self.shared)

        def surplus(true: float) -> float:
            return stats.norm.cdf((true - half) / error).mean() - power

        by_draws = optimize.brentq(surplus, 0, half.max() + 5 * error) if error else 0.0
        by_t = stats.t.ppf([0.975, power], freedom).sum() * self._t_error(n)
        return float(max(by_draws, by_t) if self.overlap else by_draws)


def paired_difference(
    first: list[Scores], second: list[Scores], metric: str, *, overlap: float = 0.0
) -> Estimate:
    """Return the difference of two methods on the same replicates and queries, first minus second.

    Args:
        first: results of one method, see ``estimate``.
        second: the same of the other method, replicate by replicate for the same queries.
        metric: which metric.
        overlap: see ``estimate``.

    Raises:
        ValueError: fewer than two replicates, or queries that do not correspond.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"{len(first)} and {len(second)} replicates cannot be compared; "
            "use the same SEEDS, at least two, for both methods"
        )
    pairs = list(zip(first, second, strict=True))
    for number, (one, other) in enumerate(pairs):
        for key in ABOUT_LINES:
            if not np.array_equal(one.get(key), other.get(key)):
                raise ValueError(
                    f"in replicate {number} the {key} of the two methods differ; "
                    "test both on the same queries"
                )
    differences = [
        one | {metric: _values(one, metric) - _values(other, metric)} for one, other in pairs
    ]
    return estimate(differences, metric, overlap=overlap)


def estimate(
    replicates: list[Scores],
    metric: str,
    *,
    overlap: float = 0.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Return the mean over replicates of a metric and how far it may be off.

    Args:
        replicates: per replicate the metrics (Q,) of its queries; ``labels`` (Q,) int, the place of
            each query's class in ``classes``; and ``classes`` (C,), one name per class, the same
            name being the same class in all replicates. Or what ``class_means`` makes of these. Of
            a single replicate nothing is known but how its test classes vary, so its interval
            leaves the rest out.
        metric: which metric.
        overlap: test classes / training classes of random splits drawn from the same classes, the
            Nadeau-Bengio correction of the t interval; 0 for independent replicates.
        draws: number of bootstrap draws.
        seed: seed of the resampling.

    Raises:
        ValueError: no replicates or queries, a metric that is missing, of another length or holds
            NaN, labels that are no places in ``classes``, names that occur twice, a single class.
    """
    sums, counts = _class_sums(replicates, metric)
    (num_classes, n), sizes = sums.shape, counts.sum(axis=0)
    means = sums.sum(axis=0) / sizes
    # How far each class pulls the mean of each replicate up or down, (C, n).
    pulls = (sums - counts * means) / sizes
    correction = num_classes / (num_classes - 1)  # as in the variance of a sample
    if n > 1:
        between = float(means.var(ddof=1))
        of_pairs = pulls.sum(axis=1) ** 2 - (pulls**2).sum(axis=1)
        shared = of_pairs.sum() / (n * (n - 1))
    else:
        between, shared = 0.0, (pulls**2).sum()
    # Chance can make the covariance of classes that hardly matter negative.
    shared = max(0.0, float(shared * correction))

    generator = np.random.default_rng(seed)
    drawn = np.full(draws, means.mean())
    if shared > 0:
        pull = pulls.mean(axis=1)
        # Few enough draws at a time to stay in the processor's cache; the draws are the same.
        block = max(1, 2**16 // num_classes)
        blocks = [
            pull[generator.integers(num_classes, size=(block, num_classes))].sum(axis=1)
            for _ in range(0, draws, block)
        ]
        # Resampling gives the shape; its width, that of sqrt(sum of squares), is replaced.
        spread = np.sqrt(shared / (pull**2).sum()) * _width(num_classes) / _width(math.inf)
        drawn += spread * np.concatenate(blocks)[:draws]
    if n > 1:
        # Equally spaced quantiles have no sampling error; those of the classes are in random order.
        t = stats.t.ppf((np.arange(draws) + 0.5) / draws, n - 1)
        drawn += np.sqrt(between / n) * t
    return Estimate(float(means.mean()), drawn, between, shared, n, overlap, num_classes)


def class_means(scores: Scores) -> Scores:
    """Return one line per class that has queries, from which every estimate is the same.

    It is what a chapter keeps of a run: resampling classes needs no more, and takes a fifth of the
    space. What single queries had can then only be had from another run.

    Args:
        scores: of one replicate, a line per query, see ``estimate``.

    Returns:
        ``labels`` (C',), ``classes`` (C,), ``queries`` (C',) and each metric's means (C',).
    """
    queries = np.bincount(scores["labels"], minlength=len(scores["classes"]))
    (tested,) = queries.nonzero()
    means = {
        name: np.bincount(scores["labels"], weights=values)[tested] / queries[tested]
        for name, values in scores.items()
        if name not in ABOUT_LINES
    }
    return {"labels": tested, "classes": scores["classes"], "queries": queries[tested], **means}


def _width(num_classes: float) -> float:
    """Return half the width of a 95 % interval in standard errors estimated from classes."""
    return float(stats.t.ppf(0.975, min(num_classes - 1, 10**6)))


def _class_sums(replicates: list[Scores], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of a metric and the numbers of queries, both (C, n), by class."""
    if not replicates:
        raise ValueError("there are no replicates to estimate from; give at least one")
    for number, replicate in enumerate(replicates):
        _check_replicate(f"replicate {number}", replicate, metric)
    names = sorted({name for replicate in replicates for name in replicate["classes"]})
    if len(names) == 1:
        raise ValueError(f"{names[0]} is the only class; how classes vary takes at least two")
    place = {name: i for i, name in enumerate(names)}
    sums = np.zeros((len(names), len(replicates)))
    counts = np.zeros_like(sums)
    for column, replicate in enumerate(replicates):
        rows = np.array([place[name] for name in replicate["classes"]])
        rows, queries = rows[replicate["labels"]], replicate.get("queries", 1)
        np.add.at(sums[:, column], rows, replicate[metric] * queries)
        np.add.at(counts[:, column], rows, queries)
    return sums, counts


def _values(replicate: Scores, metric: str) -> np.ndarray:
    """Return the metric's values, float64, or say which metrics there are."""
    if metric not in replicate:
        known = ", ".join(sorted(set(replicate) - set(ABOUT_LINES)))
        raise ValueError(f"there is no metric {metric!r}; these results have {known}")
    return np.asarray(replicate[metric], dtype=float)


def _check_replicate(which: str, replicate: Scores, metric: str) -> None:
    """Raise ValueError for results from which nothing, or nonsense, would follow."""
    values, labels, classes = _values(replicate, metric), replicate["labels"], replicate["classes"]
    if not len(values) or values.shape != labels.shape:
        raise ValueError(
            f"{which} has {metric} {values.shape} with labels {labels.shape}; "
            "give one value and one label per query, and at least one query"
        )
    if not np.isfinite(values).all():
        first = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{metric} of query {first} in {which} is {values[first]}; score it again")
    if len(np.unique(classes)) != len(classes):
        raise ValueError(
            f"{which} has {len(classes)} class names of which {len(np.unique(classes))} differ; "
            "give one name per class, and in labels its place"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels of {which} should be places in its {len(classes)} classes")


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} = {value} is not between 0 and 1, such as 0.95")
