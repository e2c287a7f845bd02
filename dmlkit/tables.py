"""Turn rows into the tables the book shows: percent, intervals, number of replicates."""

import numpy as np
import pandas as pd

from dmlkit.claims import hierarchical_bootstrap

METRIC_TITLES = {"recall_at_1": "R@1", "r_precision": "RP", "map_at_r": "MAP@R"}


def summarise(
    rows: pd.DataFrame,
    per_query: dict[str, dict[str, np.ndarray]],
    methods: list[str],
    *,
    intervals: tuple[str, ...] = ("recall_at_1", "r_precision", "map_at_r"),
    means: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return one row per method: percent, 95 % intervals, number of replicates, time.

    Args:
        rows: rows of runs, fractions in [0, 1].
        per_query: per-query results by run_id.
        methods: methods in display order.
        intervals: metrics shown as ``mean [low, high]``, the interval from a bootstrap over
            replicates and query classes.
        means: metrics shown as the mean alone.
    """
    table = []
    for method in methods:
        of_method = rows[rows["method"] == method]
        line: dict[str, object] = {"method": method}
        for metric in intervals:
            sets = [(per_query[i]["labels"], per_query[i][metric]) for i in of_method["run_id"]]
            low, high = 100 * np.quantile(hierarchical_bootstrap(sets), [0.025, 0.975])
            mean = 100 * of_method[f"metric_{metric}"].mean()
            line[METRIC_TITLES[metric]] = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
        for metric in means:
            title = METRIC_TITLES.get(metric, metric.replace("recall_at_", "R@"))
            line[title] = f"{100 * of_method[f'metric_{metric}'].mean():.1f}"
        line["steps"] = int(of_method["steps"].max())
        line["s / run"] = f"{of_method['seconds'].mean():.0f}"
        line["n"] = len(of_method)
        table.append(line)
    return pd.DataFrame(table).set_index("method")


def show_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """Return judged claims for reading: differences in points, one line each."""
    if claims.empty:
        return claims
    points = 100 * claims[["difference", "low", "high", "t_low", "t_high", "detectable"]]
    return pd.DataFrame(
        {
            "claim": claims["claim"],
            "statement": claims["statement"],
            "published": claims["published"],
            "ours, points [bootstrap]": [
                f"{d:+.1f} [{low:+.1f}, {high:+.1f}]"
                for d, low, high in points[["difference", "low", "high"]].to_numpy()
            ],
            "[t interval]": [
                f"[{low:+.1f}, {high:+.1f}]" for low, high in points[["t_low", "t_high"]].to_numpy()
            ],
            "p": [f"{p:.3f}" for p in claims["p"]],
            "p, Holm": [f"{p:.3f}" for p in claims["p_holm"]],
            "detectable": [f"{d:.1f}" for d in points["detectable"]],
            "n": claims["n"],
            "verdict": claims["verdict"],
        }
    ).set_index("claim")
