"""From stored per-query results to verdicts on the claims of the papers.

The unit of replication is a class split, and the test classes are a sample of all classes too. So
an interval resamples replicates and classes (a bootstrap over both); a class that several
replicates test counts once, whichever splits it is in. Beside it stands the t interval over
replicates, corrected for the classes that random splits share.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

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
class Difference:
    """A paired difference of two methods over replicates, in the metric's own unit.

    Args:
        mean: mean over replicates of the per-replicate difference.
        draws: (DRAWS,) the same under the bootstrap over replicates and classes.
        error: standard error over replicates, corrected for overlapping splits.
        n: replicates.
    """

    mean: float
    draws: np.ndarray
    error: float
    n: int

    def bootstrap_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval that holds ``level`` of the bootstrap draws."""
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def t_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the t interval over replicates."""
        half = stats.t.ppf((1 + level) / 2, self.n - 1) * self.error
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Return the one-sided p value of "larger than ``bound``", the worse of both methods'."""
        p_bootstrap = ((self.draws <= bound).sum() + 1) / (len(self.draws) + 1)
        distance = self.mean - bound
        if self.error == 0:
            p_t = 0.0 if distance > 0 else 1.0
        else:
            p_t = stats.t.sf(distance / self.error, self.n - 1)
        return float(max(p_bootstrap, p_t))

    def p_below(self, bound: float) -> float:
        """Return the one-sided p value of "smaller than ``bound``"."""
        return Difference(-self.mean, -self.draws, self.error, self.n).p_above(-bound)

    def detectable(self) -> float:
        """Return the difference that a two-sided t test at 5 % finds with 80 % power."""
        return float(stats.t.ppf([0.975, 0.8], self.n - 1).sum() * self.error)


def paired_difference(
    first: list[PerQuery], second: list[PerQuery], metric: str, *, overlap: float = 0.0
) -> Difference:
    """Compare two methods on the same replicates, query by query.

    Args:
        first: per replicate the per-query results of one method: ``labels`` (Q,), ``classes`` (C,)
            their names, unique over all replicates, and metrics (Q,).
        second: the same of the other method, replicate by replicate for the same queries.
        metric: which metric.
        overlap: test classes / training classes of random splits drawn from the same classes, the
            Nadeau-Bengio correction; 0 for independent replicates.

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
    means = np.array([difference[metric].mean(dtype=float) for difference in differences])
    return Difference(
        mean=float(means.mean()),
        draws=bootstrap_means(differences, metric),
        error=standard_error(means, overlap),
        n=len(means),
    )


def standard_error(means: np.ndarray, overlap: float) -> float:
    """Return the standard error of the mean of ``means`` (n,), one per replicate.

    Random splits of one data set share classes, so their results are correlated and the plain
    formula is too small (Nadeau and Bengio, 2003): ``overlap`` is added to 1/n.
    """
    return float(means.std(ddof=1) * np.sqrt(1 / len(means) + overlap))


def bootstrap_means(
    replicates: list[PerQuery], metric: str, *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Resample replicates and classes, and return (draws,) means over replicates.

    Classes are resampled jointly: a class in the test sets of several replicates is drawn equally
    often in all, because testing it again tells nothing new about other classes.

    Args:
        replicates: per-query results of each replicate.
        metric: which metric.
        draws: number of bootstrap samples.
        seed: seed of the resampling.
    """
    names = sorted({name for replicate in replicates for name in replicate["classes"].tolist()})
    place = {name: i for i, name in enumerate(names)}
    sums = np.zeros((len(names), len(replicates)))
    counts = np.zeros_like(sums)
    for column, replicate in enumerate(replicates):
        rows = np.array([place[name] for name in replicate["classes"].tolist()])
        rows = rows[replicate["labels"]]
        np.add.at(sums[:, column], rows, replicate[metric])
        np.add.at(counts[:, column], rows, 1)
    generator = np.random.default_rng(seed)
    times_class = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    n = len(replicates)
    times_replicate = generator.multinomial(n, np.full(n, 1 / n), draws)
    weights = times_class @ counts  # (draws, n)
    # A draw without a single class of some small test set falls back to that set's plain mean.
    means = np.divide(
        times_class @ sums,
        weights,
        out=np.tile(sums.sum(0) / counts.sum(0), (draws, 1)),
        where=weights > 0,
    )
    return (times_replicate * means).sum(axis=1) / n


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
        found: list[Difference | None] = []
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


def p_value(difference: Difference, direction: str, delta: float) -> float:
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


def verdict(difference: Difference, direction: str, delta: float, p_holm: float) -> str:
    """Return held, reversed, equivalent or not resolved.

    *Reversed* needs the opposite to be shown: for *greater* a significant negative difference; for
    the other two a 95 % interval, by both methods, that lies beyond the bound.

    Args:
        difference: first minus second method.
        direction: see ``p_value``.
        delta: bound, a fraction.
        p_holm: p value of the claim after Holm's correction.
    """
    lows, highs = zip(difference.bootstrap_interval(), difference.t_interval(), strict=True)
    low, high = min(lows), max(highs)
    if p_holm < 0.05:
        return "held" if direction != "greater" or difference.mean > 0 else "reversed"
    if direction != "greater":
        is_beyond = high < -delta or (direction == "equivalent" and low > delta)
        return "reversed" if is_beyond else "not resolved"
    return "equivalent" if p_value(difference, "equivalent", delta) < 0.05 else "not resolved"


def _as_row(claim: dict, difference: Difference, rung: str, p: float, p_holm: float) -> dict:
    outcome = verdict(difference, claim["direction"], claim["delta"], p_holm)
    low, high = difference.bootstrap_interval()
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
