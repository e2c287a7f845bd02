"""Published numbers, to stand beside our own: ``book/published.csv`` as tables.

A line of the file is a row that somebody printed: one method on one data set, the metrics by their
names in this book and the percentages, as printed, in the same order. ``chapters`` show it, as
``part`` of what they compare (``main``, or the name of an ablation); ``certainty`` says where the
book has the number from. ``method`` is our name for it, empty where we have none.

``nmi`` is NMI by a mean that papers seldom name. Before 2020 it was mostly the geometric one, so
ours beside it is ``nmi_geometric``.
"""

from pathlib import Path

import pandas as pd

from dmlkit.datasets import DATASETS
from dmlkit.paths import PROJECT_ROOT
from dmlkit.tables import metric_title

TITLES = {
    "cub200_2011": "CUB-200-2011",
    "cars196": "Cars-196",
    "stanford_online_products": "Stanford Online Products",
    "in_shop": "In-Shop",
}
# What to show for a data set without published numbers; for all others the one most papers have.
CLOSEST = {"compcars": "cars196", "fashion200k": "in_shop"}
NOT_PRINTED = "–"


def published(chapter: str, dataset: str, part: str = "main") -> pd.DataFrame:
    """Return the published rows of a chapter for ``dataset``, percent as printed.

    Rows of one protocol stand together, the highest R@1 first (where there is none, MAP@R); those
    of an ablation stand as in the file, by what was changed. Where nothing is published on
    ``dataset`` they are those of the closest data set: show ``caveat``.

    Args:
        chapter: name of the chapter, e.g. ``02_baseline_losses``.
        dataset: one of ``dmlkit.datasets.DATASETS``.
        part: ``main``, or an ablation by its name in the file.

    Raises:
        ValueError: an unknown data set, or no published rows for the chapter.
    """
    return _as_table(_lines(chapter, dataset, part))


def beside(rows: pd.DataFrame, chapter: str, dataset: str, part: str = "main") -> pd.DataFrame:
    """Return the same rows with ours: after those of each of our methods the mean of our runs.

    Of single models, and of joined ones (``_concatenated``) where there are any. Where we have no
    run of it the line says so. Published methods without a name of ours come last.

    Args:
        rows: rows of our runs on ``dataset``, as ``ChapterResults.load`` returns them.
        chapter: see ``published``.
        dataset: see ``published``.
        part: see ``published``.

    Raises:
        ValueError: rows of another data set, or as in ``published``.
    """
    if others := set(rows["dataset"]) - {dataset}:
        raise ValueError(f"these runs are of {', '.join(sorted(others))}, not of {dataset}")
    lines = _lines(chapter, dataset, part)
    records = []
    for method, group in lines[lines["method"] != ""].groupby("method", sort=False):
        records += group.to_dict("records")
        joined = f"{method}_concatenated"
        for name in (method, joined) if joined in set(rows["method"]) else (method,):
            records.append(_our_line(name, rows[rows["method"] == name], _metrics(lines)))
    return _as_table(pd.DataFrame(records + lines[lines["method"] == ""].to_dict("records")))


def caveat(chapter: str, dataset: str, part: str = "main") -> str:
    """Return what to know when reading ``published`` or ``beside``, for below the table."""
    shown = _lines(chapter, dataset, part)["dataset"].iloc[0]
    on_others = (
        f"Published on {TITLES[shown]}, not comparable: this chapter has no published numbers on "
        f"{dataset}. "
    )
    return (on_others if shown != dataset else "") + (
        "Numbers are comparable only within one protocol, trunk and dimension. Certainty says "
        "where this book has them from; book/published.csv holds further notes."
    )


def _lines(chapter: str, dataset: str, part: str) -> pd.DataFrame:
    """Return the lines to show, in order, with one column of text per metric."""
    if dataset not in DATASETS:
        raise ValueError(f"dataset {dataset!r} is unknown; choose one of {', '.join(DATASETS)}")
    path = PROJECT_ROOT / "book" / "published.csv"
    try:
        lines = pd.read_csv(path, dtype="str", keep_default_na=False)
        lists = zip(lines["metrics"].str.split(), lines["percent"].str.split(), strict=True)
        numbers = pd.DataFrame([dict(zip(*pair, strict=True)) for pair in lists])
        numbers.astype(float)  # raises for what is none
        lines = lines.join(numbers)
    except FileNotFoundError:
        raise
    except Exception as error:  # pandas lets all kinds through where a table is none of ours
        raise ValueError(
            f"{path} cannot be read ({error}); correct the line added last: as many percentages as "
            "metrics, and as many columns as in the first line"
        ) from error

    chapters = lines["chapters"].str.split()
    of_chapter = lines[[chapter in names for names in chapters]]
    if of_chapter.empty:
        known = ", ".join(sorted(set(chapters.explode())))
        raise ValueError(f"book/published.csv has nothing for {chapter!r}; it has {known}")
    found = of_chapter[of_chapter["part"] == part]
    if found.empty:
        known = ", ".join(of_chapter["part"].unique())
        raise ValueError(f"{chapter} has no published part {part!r}; choose one of {known}")
    on = set(found["dataset"])
    choices = (dataset, CLOSEST.get(dataset), *TITLES)
    found = found[found["dataset"] == next(choice for choice in choices if choice in on)]
    if part != "main":
        return found
    return found.sort_values(
        ["protocol", "recall_at_1", "map_at_r"],
        ascending=[True, False, False],
        key=lambda column: column if column.name == "protocol" else column.astype(float),
    )


def _our_line(method: str, rows: pd.DataFrame, metrics: list[str]) -> dict[str, str]:
    """Return the mean of our runs of ``method`` as a line of the file."""
    if rows.empty:
        return {"name": method, "source": "no run of it here"}
    params = rows["params"].iloc[0]
    weights = Path(params["WEIGHTS"]).stem.removeprefix(f"{params['TRUNK']}-")
    line = {
        "name": method,
        "trunk": f"{params['TRUNK']} ({weights})" + (", frozen" if params["CACHED_VIEWS"] else ""),
        # What is not trained has no head, and so the size of its features.
        "dim": str(params["EMBEDDING_DIM"]) if rows["steps"].max() else NOT_PRINTED,
        "protocol": ", ".join(sorted(rows["protocol"].unique())),
        "source": f"this book, {rows['dataset'].iloc[0]}",
        "certainty": f"mean of {len(rows)} runs",
    }
    for metric in metrics:
        name = f"metric_{'nmi_geometric' if metric == 'nmi' else metric}"
        if name in rows and rows[name].notna().all():
            line[metric] = f"{100 * rows[name].mean():.1f}"
    return line


def _metrics(lines: pd.DataFrame) -> list[str]:
    """Return the metrics of ``lines`` in display order."""
    last = ("r_precision", "map_at_r", "nmi")
    present = {metric for metrics in lines["metrics"].dropna() for metric in metrics.split()}
    recalls = sorted(present - set(last), key=lambda name: int(name.rpartition("_")[2]))
    return recalls + [metric for metric in last if metric in present]


def _as_table(lines: pd.DataFrame) -> pd.DataFrame:
    """Return ``lines`` for reading."""
    metrics = _metrics(lines)
    titles = {"name": "method"} | {metric: metric_title(metric) for metric in metrics}
    columns = ["name", "trunk", "dim", *metrics, "protocol", "source", "certainty"]
    table = lines[columns].fillna(NOT_PRINTED).replace("", NOT_PRINTED)
    table["protocol"] = table["protocol"].str.replace("_", " ")
    return table.rename(columns=titles).set_index("method")
