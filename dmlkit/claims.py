"""Verdicts on the claims of the papers, from stored results."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from dmlkit.intervals import Estimate, Scores, paired_difference
from dmlkit.paths import PROJECT_ROOT

JUDGED = (
    *("claim", "paper", "statement", "metric", "published", "bound", "difference", "low", "high"),
    *("t_low", "t_high", "p", "p_holm", "detectable", "n", "rung", "verdict"),
)
RUNGS = {
    **dict.fromkeys(("cub200_2011", "cars196", "stanford_online_products", "in_shop"), "paper"),
    **{"cub200_2010": "birds", "omniglot": "omniglot"},
}


def judge(
    chapter: str,
    rung: str,
    rows: pd.DataFrame,
    by_class: dict[str, Scores],
    *,
    overlap: float,
) -> pd.DataFrame:
    """Return the claims of ``book/claims.csv`` that ``rows`` can test, each with its verdict.

    Every claim has one p value, see ``p_value``: below 5 % after Holm's correction the claim is
    *held* or *reversed*. The correction is over all claims of the paper in this chapter and rung,
    those that were not run counting as 1, so that at most one such ledger in twenty holds a false
    *held* or *reversed*. Claims of "greater" that are neither may still show both methods to be
    equivalent; their p values for that are corrected in the same way. On drawn data a verdict
    demonstrates, and is marked so.

    Replicates are paired by seed; one that only one of two methods has is left out.

    Args:
        chapter: the chapter's name.
        rung: where it was run: drawn, features, birds, omniglot or paper.
        rows: rows of the chapter's runs, one per method and replicate.
        by_class: results of each run_id, see :func:`dmlkit.intervals.class_means`.
        overlap: see :func:`dmlkit.intervals.estimate`.

    Returns:
        One line per claim; none with fewer than two replicates.
    """
    claims = pd.read_csv(PROJECT_ROOT / "book" / "claims.csv", keep_default_na=False)
    claims = claims[
        (claims["chapter"] == chapter) & claims["rungs"].map(lambda rungs: rung in rungs.split())
    ]
    results = {
        method: {row.seed: by_class[row.run_id] for row in group.itertuples()}
        for method, group in rows.groupby("method")
    }
    judged = []
    for _, of_paper in claims.groupby("paper", sort=False):
        records = of_paper.to_dict("records")
        found: list[Estimate | None] = []
        for claim in records:
            first, second = (results.get(claim[role], {}) for role in ("first", "second"))
            seeds = sorted(first.keys() & second.keys())
            pair = [[method[seed] for seed in seeds] for method in (first, second)]
            is_run = len(seeds) > 1
            found.append(
                paired_difference(*pair, claim["metric"], overlap=overlap) if is_run else None
            )
        pairs = list(zip(records, found, strict=True))
        p_values = [1.0 if d is None else p_value(d, c["direction"], c["delta"]) for c, d in pairs]
        p_equal = [
            1.0 if d is None or c["direction"] != "greater" else p_equivalent(d, c["delta"])
            for c, d in pairs
        ]
        judged += [
            _as_row(claim, difference, rung, *tested)
            for claim, difference, *tested in zip(
                records, found, p_values, holm(p_values), holm(p_equal), strict=True
            )
            if difference is not None
        ]
    return pd.DataFrame(judged, columns=JUDGED)


def ledger(profiles: Iterable[Path]) -> pd.DataFrame:
    """Return what was judged in the results folders of several profiles, a line per claim and one.

    Args:
        profiles: folders ``<profile>`` that hold ``<chapter>/claims.csv``; others are passed over.

    Returns:
        The columns of ``judge`` with ``profile`` and ``chapter`` in front, in the order of
        ``book/claims.csv``; a claim that no profile has judged is not in it.
    """
    found = []
    for path in (path for profile in profiles for path in sorted(profile.glob("*/claims.csv"))):
        claims = pd.read_csv(path, keep_default_na=False)
        if "verdict" not in claims:  # the book's own list, in a copy of the project beside results
            continue
        claims.insert(0, "profile", path.parts[-3])
        claims.insert(1, "chapter", path.parts[-2])
        found.append(claims)
    if not found:
        return pd.DataFrame(columns=["profile", "chapter", *JUDGED])
    listed = pd.read_csv(PROJECT_ROOT / "book" / "claims.csv")["claim"].tolist()
    places = {claim: place for place, claim in enumerate(listed)}
    claims = pd.concat(found, ignore_index=True)
    return claims.sort_values(
        "claim", key=lambda names: names.map(places), kind="stable", ignore_index=True
    )


def rung_of(dataset: str, weights: str, cached_views: int, *, is_subset: bool) -> str:
    """Return where an experiment stands as evidence.

    That is ``drawn``, ``features``, ``birds``, ``omniglot`` or ``paper``; ``none`` for a reader's
    own images, for a part of a data set, and for photographs without pre-trained weights, on
    which no claim is judged.
    """
    # Importing torch takes seconds and 0.8 GB in every worker, which tables alone can spare.
    from dmlkit.datasets import FAMILIES

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
    """Return the p value of what a claim says or of its opposite, whichever was found.

    With d the true difference and p(...) a one-sided p value, twice the smaller of

    - ``greater``: p(d > 0) and p(d < 0);
    - ``not_worse``: p(d > -delta) and p(d < -delta);
    - ``equivalent``: the larger of p(d > -delta) and p(d < delta), which are the two one-sided
      tests (Schuirmann, 1987), and of p(d < -delta) and p(d > delta) the smaller.

    Args:
        difference: first minus second method.
        direction: ``greater``, ``not_worse`` or ``equivalent``.
        delta: bound, a fraction of the metric, which ``greater`` does not use.

    Raises:
        ValueError: another direction, or a delta outside (0, 0.5].
    """
    if not 0 < delta <= 0.5:
        raise ValueError(f"delta = {delta} is a fraction of the metric; one point is 0.01")
    above, below = difference.p_above, difference.p_below
    if direction == "greater":
        p = min(above(0), below(0))
    elif direction == "not_worse":
        p = min(above(-delta), below(-delta))
    elif direction == "equivalent":
        p = min(p_equivalent(difference, delta), below(-delta), above(delta))
    else:
        raise ValueError(
            f"there is no direction {direction!r}; choose greater, not_worse or equivalent"
        )
    return min(1.0, 2 * p)


def p_equivalent(difference: Estimate, delta: float) -> float:
    """Return the p value of a true difference within +-delta, by two one-sided tests."""
    return max(difference.p_above(-delta), difference.p_below(delta))


def verdict(
    difference: Estimate, direction: str, delta: float, p_holm: float, p_equal: float = 1.0
) -> str:
    """Return held, reversed, equivalent or not resolved.

    Args:
        difference: first minus second method.
        direction: see ``p_value``.
        delta: see ``p_value``.
        p_holm: p value of the claim after Holm's correction.
        p_equal: that of ``p_equivalent``, for a claim of ``greater``.
    """
    if p_holm < 0.05:
        is_held = {
            "greater": difference.mean > 0,
            "not_worse": difference.mean > -delta,
            "equivalent": abs(difference.mean) < delta,
        }
        return "held" if is_held[direction] else "reversed"
    return "equivalent" if p_equal < 0.05 else "not resolved"


def _as_row(
    claim: dict, difference: Estimate, rung: str, p: float, p_holm: float, p_equal: float
) -> dict:
    outcome = verdict(difference, claim["direction"], claim["delta"], p_holm, p_equal)
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
