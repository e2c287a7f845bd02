"""From stored per-query results to verdicts on the claims of the papers.

The unit of replication is a class split, and the test classes of a split are a sample too. So an
interval resamples replicates, and query classes within each (a hierarchical bootstrap), and beside
it stands the t interval over replicates, corrected for the classes that random splits share.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from dmlkit.paths import PROJECT_ROOT

DRAWS = 4000  # bootstrap draws; a p value cannot be smaller than 1 / (DRAWS + 1)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two methods over replicates, in the metric's own unit.

    Args:
        mean: mean over replicates of the per-replicate difference.
        low, high: 95 % interval of the hierarchical bootstrap.
        t_low, t_high: 95 % t interval over replicates, corrected for overlapping splits.
        p: two-sided, the larger of the two methods'.
        equivalence_interval: 90 % interval, the wider of the two methods', for two one-sided tests.
        detectable: difference that a t test would find with 80 % power.
        n: replicates.
    """

    mean: float
    low: float
    high: float
    t_low: float
    t_high: float
    p: float
    equivalence_interval: tuple[float, float]
    detectable: float
    n: int


def paired_difference(
    first: list[dict[str, np.ndarray]],
    second: list[dict[str, np.ndarray]],
    metric: str,
    *,
    overlap: float = 0.0,
) -> Difference:
    """Compare two methods on the same replicates, query by query.

    Args:
        first: per replicate the per-query results (``labels`` and metrics) of one method.
        second: the same of the other, replicate by replicate for the same queries.
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
    for one, other in zip(first, second, strict=True):
        if not np.array_equal(one["labels"], other["labels"]):
            raise ValueError("the two methods were not tested on the same queries")
    sets = [(a["labels"], a[metric] - b[metric]) for a, b in zip(first, second, strict=True)]
    means = np.array([values.mean() for _, values in sets])
    draws = hierarchical_bootstrap(sets)
    low, high, low90, high90 = np.quantile(draws, [0.025, 0.975, 0.05, 0.95])
    error, t = standard_error(means, overlap), stats.t(df=len(means) - 1)
    center = means.mean()
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    p_bootstrap = min(1.0, 2 * (tail + 1) / (len(draws) + 1))
    p_t = 2 * t.sf(abs(center) / error) if error else float(center == 0)
    return Difference(
        mean=center,
        low=low,
        high=high,
        t_low=center - t.ppf(0.975) * error,
        t_high=center + t.ppf(0.975) * error,
        p=max(p_bootstrap, p_t),
        equivalence_interval=(
            min(low90, center - t.ppf(0.95) * error),
            max(high90, center + t.ppf(0.95) * error),
        ),
        detectable=(t.ppf(0.975) + t.ppf(0.8)) * error,
        n=len(means),
    )


def standard_error(means: np.ndarray, overlap: float) -> float:
    """Return the standard error of the mean of ``means`` (n,), one per replicate.

    Random splits of one data set share classes, so their results are correlated and the plain
    formula is too small (Nadeau and Bengio, 2003): ``overlap`` is added to 1/n.
    """
    return float(means.std(ddof=1) * np.sqrt(1 / len(means) + overlap))


def hierarchical_bootstrap(
    sets: list[tuple[np.ndarray, np.ndarray]], *, draws: int = DRAWS, seed: int = 0
) -> np.ndarray:
    """Resample replicates, then classes within each, and return (draws,) means over replicates.

    Args:
        sets: per replicate, class labels (Q,) from 0 and values (Q,) of its queries.
        draws: number of bootstrap samples.
        seed: seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    picked = generator.integers(len(sets), size=(draws, len(sets)))
    total = np.zeros(draws)
    for replicate, (labels, values) in enumerate(sets):
        sums = np.bincount(labels, weights=values)
        counts = np.bincount(labels)
        sums, counts = sums[counts > 0], counts[counts > 0]
        times = (picked == replicate).sum(axis=1)  # (draws,), how often it was picked
        for nth in range(times.max(initial=0)):
            again = times > nth
            shares = np.full(len(counts), 1 / len(counts))
            weights = generator.multinomial(len(counts), shares, size=again.sum())
            total[again] += (weights @ sums) / (weights @ counts)
    return total / len(sets)


def judge(
    chapter: str,
    rung: str,
    rows: pd.DataFrame,
    per_query: dict[str, dict[str, np.ndarray]],
    *,
    overlap: float,
) -> pd.DataFrame:
    """Return the claims of ``book/claims.csv`` that ``rows`` can test, each with its verdict.

    A claim is *held* or *reversed* when its difference is significant at 5 % after Holm's
    correction over the claims of one paper; *equivalent* when the 90 % interval lies within its
    bound delta; else *not resolved*. On drawn data a verdict demonstrates, and is marked so.

    Args:
        chapter: the chapter's name.
        rung: where it was run: drawn, features, birds, omniglot or paper.
        rows: rows of the chapter's runs.
        per_query: per-query results by run_id.
        overlap: see ``paired_difference``.
    """
    claims = pd.read_csv(PROJECT_ROOT / "book" / "claims.csv", keep_default_na=False)
    claims = claims[(claims["chapter"] == chapter) & claims["rungs"].str.contains(rung)]
    results = {
        method: [per_query[run_id] for run_id in group.sort_values("seed")["run_id"]]
        for method, group in rows.groupby("method")
    }
    judged = []
    for claim in claims.to_dict("records"):
        if not {claim["first"], claim["second"]} <= set(results):
            continue
        difference = paired_difference(
            results[claim["first"]], results[claim["second"]], claim["metric"], overlap=overlap
        )
        judged.append(claim | {"difference": difference})
    adjusted = _holm_by_paper(judged)
    return pd.DataFrame(
        [
            _as_row(claim, rung, p_adjusted)
            for claim, p_adjusted in zip(judged, adjusted, strict=True)
        ]
    )


def rung_of(dataset: str, cached_views: int) -> str:
    """Return where an experiment stands as evidence: drawn, features, omniglot, birds or paper."""
    if dataset == "aviary":
        return "drawn"
    if cached_views:
        return "features"
    return {"omniglot": "omniglot", "cub200_2010": "birds"}.get(dataset, "paper")


def holm(p_values: list[float]) -> list[float]:
    """Return ``p_values`` adjusted for their number (Holm, 1979)."""
    order = np.argsort(p_values)
    scaled = np.array(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted.tolist()


def verdict(difference: Difference, direction: str, delta: float, p_adjusted: float) -> str:
    """Return held, reversed, equivalent or not resolved.

    Args:
        difference: first minus second method.
        direction: what the paper claims: ``greater``, ``equivalent``, or ``not_worse`` by more than
            delta.
        delta: bound of equivalence, a fraction.
        p_adjusted: p value after Holm's correction.
    """
    low, high = difference.equivalence_interval
    equivalent = -delta < low and high < delta
    if direction == "equivalent":
        if equivalent:
            return "held"
        return "reversed" if p_adjusted < 0.05 and abs(difference.mean) > delta else "not resolved"
    if direction == "not_worse":
        if low > -delta:
            return "held"
        return "reversed" if p_adjusted < 0.05 and difference.mean < -delta else "not resolved"
    if p_adjusted < 0.05:
        return "held" if difference.mean > 0 else "reversed"
    return "equivalent" if equivalent else "not resolved"


def _holm_by_paper(judged: list[dict]) -> list[float]:
    adjusted = [1.0] * len(judged)
    for paper in {claim["paper"] for claim in judged}:
        of_paper = [i for i, claim in enumerate(judged) if claim["paper"] == paper]
        for i, p in zip(of_paper, holm([judged[i]["difference"].p for i in of_paper]), strict=True):
            adjusted[i] = p
    return adjusted


def _as_row(claim: dict, rung: str, p_adjusted: float) -> dict:
    difference: Difference = claim["difference"]
    outcome = verdict(difference, claim["direction"], float(claim["delta"]), p_adjusted)
    return {
        "claim": claim["claim"],
        "paper": claim["paper"],
        "statement": claim["statement"],
        "metric": claim["metric"],
        "published": claim["published"],
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "t_low": difference.t_low,
        "t_high": difference.t_high,
        "p": difference.p,
        "p_holm": p_adjusted,
        "detectable": difference.detectable,
        "n": difference.n,
        "rung": rung,
        "verdict": outcome + (" (demonstration)" if rung == "drawn" else ""),
    }
