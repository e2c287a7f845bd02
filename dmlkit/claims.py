"""From stored per-query results to verdicts on the claims of the papers.

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
sum of two such parts is Fisher's, 1935, for means with unequal variances.) Simulated with the
variances of our own runs and with extreme ones, n being 3, 5 or 10, 95 % intervals hold the truth
in 94 to 98 % of the cases; ``tests/test_claims.py`` repeats a part of it.

One thing is not in them: random splits of one set share training classes too, and nothing in the
results tells how much of what replicates differ by comes from there. The t interval of Nadeau and
Bengio (2003), shown beside, is wide enough if all does, and otherwise two or three times too wide.
A verdict on such splits needs both, so that it stands whatever the answer.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import optimize, stats

from dmlkit.datasets import FAMILIES
from dmlkit.paths import PROJECT_ROOT

DRAWS = 4000  # bootstrap draws; a p value cannot be smaller than 1 / (DRAWS + 1)
JUDGED = (
    *("claim", "paper", "statement", "metric", "published", "bound", "difference", "low", "high"),
    *("t_low", "t_high", "p", "p_holm", "detectable", "n", "rung", "verdict"),
)
RUNGS = {
    **dict.fromkeys(("cub200_2011", "cars196", "stanford_online_products", "in_shop"), "paper"),
    **{"cub200_2010": "birds", "omniglot": "omniglot"},
}
PerQuery = dict[str, np.ndarray]


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
    """

    mean: float
    draws: np.ndarray
    between: float
    shared: float
    n: int
    overlap: float = 0.0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds ``level`` of the bootstrap draws."""
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def t_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the t interval over replicates, corrected as by Nadeau and Bengio (2003)."""
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
            power: chance of finding it.
        """
        n = self.n if n is None else n
        freedom = min(n - 1, 10**6)
        # The half width of the interval varies as much as the estimate of ``between`` does.
        chances = (np.arange(1000) + 0.5) / 1000
        estimated = self.between / n * stats.chi2.ppf(chances, freedom) / freedom
        t, normal = stats.t.ppf(0.975, freedom), stats.norm.ppf(0.975)
        half = np.sqrt(t**2 * estimated + normal**2 * self.shared)
        error = np.sqrt(self.between / n + self.shared)

        def surplus(true: float) -> float:
            return stats.norm.cdf((true - half) / error).mean() - power

        by_draws = optimize.brentq(surplus, 0, half.max() + 5 * error) if error else 0.0
        by_t = stats.t.ppf([0.975, power], freedom).sum() * self._t_error(n)
        return float(max(by_draws, by_t) if self.overlap else by_draws)


def paired_difference(
    first: list[PerQuery], second: list[PerQuery], metric: str, *, overlap: float = 0.0
) -> Estimate:
    """Compare two methods on the same replicates, query by query: first minus second.

    Args:
        first: per-query results of one method, see ``estimate``.
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
    for one, other in pairs:
        if not all(np.array_equal(one[key], other[key]) for key in ("labels", "classes")):
            raise ValueError("the two methods were not tested on the same queries")
    differences = [one | {metric: one[metric] - other[metric]} for one, other in pairs]
    return estimate(differences, metric, overlap=overlap)


def estimate(
    replicates: list[PerQuery],
    metric: str,
    *,
    overlap: float = 0.0,
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """Return the mean over replicates of a metric and how far it may be off.

    Args:
        replicates: per replicate ``labels`` (Q,), ``classes`` (C,) their names, the same name being
            the same class in all replicates, and metrics (Q,). Of a single replicate nothing is
            known but how its test classes vary, so its interval leaves the rest out.
        metric: which metric.
        overlap: test classes / training classes of random splits drawn from the same classes, the
            Nadeau-Bengio correction of the t interval; 0 for independent replicates.
        draws: number of bootstrap draws.
        seed: seed of the resampling.
    """
    sums, counts = _class_sums(replicates, metric)
    (num_classes, n), sizes = sums.shape, counts.sum(axis=0)
    means = sums.sum(axis=0) / sizes
    # How far each class pulls the mean of each replicate up or down, (C, n).
    pulls = (sums - counts * means) / sizes
    correction = num_classes / max(num_classes - 1, 1)  # as in the variance of a sample
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
        # A hundred draws at a time: all at once, thousands of classes would take half a gigabyte.
        blocks = [
            pull[generator.integers(num_classes, size=(100, num_classes))].sum(axis=1)
            for _ in range(0, draws, 100)
        ]
        # Resampling gives the shape; its width, that of sqrt(sum of squares), is replaced.
        drawn += np.sqrt(shared / (pull**2).sum()) * np.concatenate(blocks)[:draws]
    if n > 1:
        # Equally spaced quantiles have no sampling error; those of the classes are in random order.
        t = stats.t.ppf((np.arange(draws) + 0.5) / draws, n - 1)
        drawn += np.sqrt(between / n) * t
    return Estimate(float(means.mean()), drawn, between, shared, n, overlap)


def _class_sums(replicates: list[PerQuery], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of a metric and the numbers of queries, both (C, n), by class."""
    names = sorted({name for replicate in replicates for name in replicate["classes"].tolist()})
    place = {name: i for i, name in enumerate(names)}
    sums = np.zeros((len(names), len(replicates)))
    counts = np.zeros_like(sums)
    for column, replicate in enumerate(replicates):
        rows = np.array([place[name] for name in replicate["classes"].tolist()])
        rows = rows[replicate["labels"]]
        np.add.at(sums[:, column], rows, replicate[metric])
        np.add.at(counts[:, column], rows, 1)
    return sums, counts


def judge(
    chapter: str,
    rung: str,
    rows: pd.DataFrame,
    per_query: dict[str, PerQuery],
    *,
    overlap: float,
) -> pd.DataFrame:
    """Return the claims of ``book/claims.csv`` that ``rows`` can test, each with its verdict.

    Every claim has one p value, that of what it says: two-sided for *greater*, one-sided against
    -delta for *not worse*, two one-sided tests for *equivalent*. *Held* needs it below 5 % after
    Holm's correction over all claims of the paper in this chapter and rung, those that were not
    run counting as 1. On drawn data a verdict demonstrates, and is marked so.

    Args:
        chapter: the chapter's name.
        rung: where it was run: drawn, features, birds, omniglot or paper.
        rows: rows of the chapter's runs, one per method and replicate.
        per_query: per-query results by run_id.
        overlap: see ``paired_difference``.

    Returns:
        One line per claim; none with fewer than two replicates.
    """
    claims = pd.read_csv(PROJECT_ROOT / "book" / "claims.csv", keep_default_na=False)
    claims = claims[
        (claims["chapter"] == chapter) & claims["rungs"].map(lambda rungs: rung in rungs.split())
    ]
    results = {
        method: [per_query[run_id] for run_id in group.sort_values("seed")["run_id"]]
        for method, group in rows.groupby("method")
    }
    can_compare = rows["seed"].nunique() > 1
    judged = []
    for _, of_paper in claims.groupby("paper", sort=False):
        records = of_paper.to_dict("records")
        found: list[Estimate | None] = []
        for claim in records:
            pair = [results.get(claim[role]) for role in ("first", "second")]
            is_run = can_compare and None not in pair
            found.append(
                paired_difference(*pair, claim["metric"], overlap=overlap) if is_run else None
            )
        p_values = [
            1.0 if difference is None else p_value(difference, claim["direction"], claim["delta"])
            for claim, difference in zip(records, found, strict=True)
        ]
        judged += [
            _as_row(claim, difference, rung, p, p_holm)
            for claim, difference, p, p_holm in zip(
                records, found, p_values, holm(p_values), strict=True
            )
            if difference is not None
        ]
    return pd.DataFrame(judged, columns=JUDGED)


def rung_of(dataset: str, weights: str, cached_views: int, *, is_subset: bool) -> str:
    """Return where an experiment stands as evidence.

    That is ``drawn``, ``features``, ``birds``, ``omniglot`` or ``paper``; ``none`` for a reader's
    own images, for a part of a data set, and for photographs without pre-trained weights, on
    which no claim is judged.
    """
    if dataset in FAMILIES:
        return "drawn"
    if is_subset or dataset not in RUNGS or (weights == "none" and dataset != "omniglot"):
        return "none"
    return "features" if cached_views else RUNGS[dataset]


def holm(p_values: list[float]) -> list[float]:
    """Return ``p_values`` adjusted for their number (Holm, 1979)."""
    order = np.argsort(p_values)
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted.tolist()


def p_value(difference: Estimate, direction: str, delta: float) -> float:
    """Return the p value of what a claim says.

    Args:
        difference: first minus second method.
        direction: ``greater``, ``not_worse`` by more than delta, or ``equivalent`` within delta.
        delta: bound, a fraction.
    """
    if direction == "greater":
        return min(1.0, 2 * min(difference.p_above(0), difference.p_below(0)))
    if direction == "not_worse":
        return difference.p_above(-delta)
    return max(difference.p_above(-delta), difference.p_below(delta))


def verdict(difference: Estimate, direction: str, delta: float, p_holm: float) -> str:
    """Return held, reversed, equivalent or not resolved.

    *Reversed* needs the opposite to be shown: for *greater* a significant negative difference; for
    the other two a 95 % interval (both, where splits overlap) that lies beyond the bound.

    Args:
        difference: first minus second method.
        direction: see ``p_value``.
        delta: bound, a fraction.
        p_holm: p value of the claim after Holm's correction.
    """
    if p_holm < 0.05:
        return "held" if direction != "greater" or difference.mean > 0 else "reversed"
    if direction != "greater":
        intervals = [difference.interval()]
        if difference.overlap:
            intervals.append(difference.t_interval())
        low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
        is_beyond = high < -delta or (direction == "equivalent" and low > delta)
        return "reversed" if is_beyond else "not resolved"
    return "equivalent" if p_value(difference, "equivalent", delta) < 0.05 else "not resolved"


def _as_row(claim: dict, difference: Estimate, rung: str, p: float, p_holm: float) -> dict:
    outcome = verdict(difference, claim["direction"], claim["delta"], p_holm)
    low, high = difference.interval()
    t_low, t_high = difference.t_interval()
    return {
        **{key: claim[key] for key in ("claim", "paper", "statement", "metric", "published")},
        "bound": claim["delta"],
        "difference": difference.mean,
        "low": low,
        "high": high,
        "t_low": t_low,
        "t_high": t_high,
        "p": p,
        "p_holm": p_holm,
        "detectable": difference.detectable(),
        "n": difference.n,
        "rung": rung,
        "verdict": outcome + (" (demonstration)" if rung == "drawn" else ""),
    }
