"""Turn rows into the tables the book shows: percent, intervals, number of replicates."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from dmlkit.intervals import Scores, estimate

TITLES = {
    "r_precision": "RP",
    "map_at_r": "MAP@R",
    "nmi": "NMI",
    "nmi_arithmetic": "NMI",
    "nmi_geometric": "NMI",
    "nmi_geometric_of_random_labels": "NMI, random",
    "ami": "AMI",
    "average_precision": "mAP",
}

ABOUT_CLAIMS = ["statement", "paper", "metric", "published"]


def metric_title(metric: str) -> str:
    """Return how tables call a metric: ``R@8`` for ``recall_at_8``."""
    return TITLES.get(metric, metric.replace("recall_at_", "R@"))


def summarise(
    rows: pd.DataFrame,
    by_class: dict[str, Scores],
    methods: list[str],
    *,
    intervals: tuple[str, ...] = ("recall_at_1", "r_precision", "map_at_r"),
    means: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Return one row per method: percent, 95 % intervals, number of replicates, time.

    Args:
        rows: rows of runs, fractions in [0, 1].
        by_class: results of each run_id, see :func:`dmlkit.intervals.class_means`.
        methods: methods in display order.
        intervals: metrics shown as ``mean [low, high]``, the interval of replicates and query
            classes (see :mod:`dmlkit.intervals`); with one replicate, of classes alone.
        means: metrics shown as the mean alone.
    """
    table = []
    for method in methods:
        of_method = rows[rows["method"] == method]
        line: dict[str, object] = {"method": method}
        for metric in intervals:
            mean, low, high = _percent(of_method, by_class, metric)
            line[metric_title(metric)] = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
        for metric in means:
            mean = 100 * of_method[f"metric_{metric}"].mean()
            line[metric_title(metric)] = "–" if np.isnan(mean) else f"{mean:.1f}"
        line["steps"] = int(of_method["steps"].max())
        line["s / run"] = f"{of_method['seconds'].mean():.0f}"
        line["n"] = len(of_method)
        table.append(line)
    return pd.DataFrame(table).set_index("method")


def sweep_table(
    rows: pd.DataFrame,
    by_class: dict[str, Scores],
    points: dict[Any, str],
    metric: str = "recall_at_1",
) -> pd.DataFrame:
    """Return ``mean``, ``low`` and ``high`` of a 95 % interval, percent, by point of a sweep.

    Args:
        rows: rows of runs.
        by_class: results of each run_id, see :func:`dmlkit.intervals.class_means`.
        points: value of the parameter to the method that has it, in display order.
        metric: name of a per-query metric.
    """
    lines = {
        value: _percent(rows[rows["method"] == method], by_class, metric)
        for value, method in points.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index", columns=["mean", "low", "high"])


def _percent(
    rows: pd.DataFrame, by_class: dict[str, Scores], metric: str
) -> tuple[float, float, float]:
    """Return mean and 95 % interval of a metric over ``rows`` of one method, in percent."""
    found = estimate([by_class[i] for i in rows["run_id"]], metric)
    low, high = np.clip(100 * np.array(found.interval()), 0, 100)
    return 100 * found.mean, low, high


def steps_to(
    rows: pd.DataFrame, methods: list[str], *, share: float = 0.9, metric: str = "recall_at_1"
) -> pd.DataFrame:
    """Return how soon each method comes near its own last value on validation classes.

    Args:
        rows: rows of runs, each with its ``history``.
        methods: trained methods.
        share: how near, as a share of the value at the last step.
        metric: name of a validation metric.

    Returns:
        One line per method, means over replicates: the last value in percent, the first measured
        step that reaches ``share`` of it, and the same for the best of the methods' last values
        (a run that never reaches that counts with its last step, and the mean is marked >). No
        columns where nothing was validated.
    """
    name = f"validation_{metric}"
    curves = {
        (row.method, row.seed): pd.DataFrame(row.history).set_index("step")
        for row in rows[rows["method"].isin(methods)].itertuples()
    }
    if any(name not in curve for curve in curves.values()):
        return pd.DataFrame(index=pd.Index(methods, name="method"))
    last = pd.Series({key: curve[name].iloc[-1] for key, curve in curves.items()})
    best = last.groupby(level=1).max()
    lines = {}
    for method in methods:
        own, others, is_reached = [], [], True
        for seed, value in last[method].items():
            curve = curves[method, seed][name]
            own.append(curve.index[curve >= share * value][0])
            near = curve.index[curve >= share * best[seed]]
            is_reached = is_reached and len(near) > 0
            others.append(near[0] if len(near) else curve.index[-1])
        never = "" if is_reached else "> "
        lines[method] = {
            f"validation {metric_title(metric)}": f"{100 * last[method].mean():.1f}",
            f"steps to {share:.0%} of it": f"{np.mean(own):.0f}",
            f"steps to {share:.0%} of the best": f"{never}{np.mean(others):.0f}",
        }
    return pd.DataFrame(lines).T.rename_axis("method")


def order_stability(
    rows: pd.DataFrame,
    by_class: dict[str, Scores],
    methods: list[str],
    *,
    metrics: tuple[str, ...] = ("recall_at_1", "r_precision", "map_at_r"),
    cuts: int = 20,
) -> pd.DataFrame:
    """Return how well two halves of the test classes agree on the order of methods.

    Args:
        rows: rows of runs.
        by_class: results of each run_id, see :func:`dmlkit.intervals.class_means`.
        methods: methods to order.
        metrics: what to order them by.
        cuts: random cuts of the classes of each replicate.

    Returns:
        One line per metric: Kendall's rank correlation, mean over replicates, and how far it is
        beyond that of the first metric, with the standard error over replicates (which takes them
        for independent). Empty with fewer than three methods, which have hardly an order.
    """
    if len(methods) < 3:
        return pd.DataFrame()
    generator, agreement = np.random.default_rng(0), {metric: [] for metric in metrics}
    for _, of_seed in rows[rows["method"].isin(methods)].groupby("seed"):
        run_ids = of_seed.set_index("method").loc[methods, "run_id"]
        results = [by_class[run_id] for run_id in run_ids]
        labels, num_classes = results[0]["labels"], len(results[0]["classes"])
        queries = results[0].get("queries", np.ones(len(labels)))
        halves = [generator.permutation(num_classes) < num_classes // 2 for _ in range(cuts)]
        halves = [half[labels] for half in halves]
        for metric in metrics:
            sums = np.array([result[metric] for result in results]) * queries  # (methods, Q)
            of_halves = [
                [sums[:, part].sum(axis=1) / queries[part].sum() for part in (half, ~half)]
                for half in halves
            ]
            agreement[metric].append(np.mean([kendalltau(*both).statistic for both in of_halves]))
    first = np.array(agreement[metrics[0]])
    lines = {}
    for metric, values in agreement.items():
        beyond = np.array(values) - first
        error = beyond.std(ddof=1) / np.sqrt(len(beyond)) if len(beyond) > 1 else np.nan
        is_first = metric == metrics[0]
        lines[metric_title(metric)] = {
            "Kendall's tau": f"{np.mean(values):.2f}",
            f"beyond {metric_title(metrics[0])}": "" if is_first else f"{beyond.mean():+.2f}",
            "standard error": "" if is_first else f"{error:.2f}",
        }
    return pd.DataFrame(lines).T.rename_axis("metric")


def circumstances(rows: pd.DataFrame) -> str:
    """Return one sentence on how ``rows`` were made, and so whether they are of a kind."""
    said = {
        name: ", ".join(sorted(map(str, rows[name].unique())))
        for name in ("device", "threads", "precision", "versions", "code", "commit")
    }
    is_random = (rows["protocol"] == "random").all()
    fixed = "" if is_random else "All replicates have the same test classes. "
    return fixed + (
        f"Made on {said['device']} with {said['threads']} thread(s) in {said['precision']}; "
        f"{said['versions']}; code {said['code']}, commit {said['commit']}."
    )


def show_claims(claims: pd.DataFrame) -> pd.DataFrame:
    """Return judged claims for reading: differences in points, one line each."""
    if claims.empty:
        said = (
            "No claim is judged: that takes whole data sets, at least two replicates, and claims "
            "that book/claims.csv lists for such data."
        )
        return pd.DataFrame({"claims": [said]})
    names = ["bound", "difference", "low", "high", "t_low", "t_high", "detectable"]
    points = 100 * claims[names]
    table = pd.DataFrame(
        {
            "claim": claims["claim"],
            "statement": claims["statement"],
            "metric": [metric_title(metric) for metric in claims["metric"]],
            "published": claims["published"],
            "bound": [f"{bound:.1f}" for bound in points["bound"]],
            "points": [f"{d:+.1f}" for d in points["difference"]],
            "bootstrap": [f"{a:+.1f} to {b:+.1f}" for a, b in points[["low", "high"]].to_numpy()],
            "t interval": [
                f"{a:+.1f} to {b:+.1f}" for a, b in points[["t_low", "t_high"]].to_numpy()
            ],
            "p (Holm)": [f"{p:.3f} ({holm:.3f})" for p, holm in claims[["p", "p_holm"]].to_numpy()],
            # Without variation between replicates nothing can be said about what is detectable.
            "detectable": [f"{d:.1f}" if d else "–" for d in points["detectable"]],
            "n": claims["n"],
            "verdict": claims["verdict"],
        }
    ).set_index("claim")
    return table.drop(columns="published") if (claims["published"] == "").all() else table


def show_ledger(claims: pd.DataFrame) -> pd.DataFrame:
    """Return judged claims of several profiles for reading: a line per claim, a column per profile.

    Args:
        claims: as ``dmlkit.claims.ledger`` returns them.

    Returns:
        In each cell verdict (*drawn* where it only demonstrates), difference in points and number
        of replicates; empty where a profile has not judged the claim.
    """
    if claims.empty:
        return show_claims(claims)
    claims = claims.assign(
        said=[
            f"{verdict.replace(' (demonstration)', ', drawn')} ({points:+.1f}, n\u00a0{n})"
            for verdict, points, n in zip(
                claims["verdict"], 100 * claims["difference"], claims["n"], strict=True
            )
        ],
        metric=[metric_title(metric) for metric in claims["metric"]],
    )
    about = claims.drop_duplicates("claim").set_index("claim")[ABOUT_CLAIMS]
    said = claims.pivot(index="claim", columns="profile", values="said")
    return about.join(said).fillna("")
