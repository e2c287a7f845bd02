"""The index page of a results folder: what was run, its tables, claims and figures."""

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from dmlkit import claims
from dmlkit.chapters import BOOK
from dmlkit.paths import PROJECT_ROOT, write_atomically
from dmlkit.tables import ABOUT_CLAIMS, metric_title, show_claims, show_ledger

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; display: block;
        overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: left;
         vertical-align: top; }
img { max-width: 100%; background: white; }
:root { color-scheme: light dark; }
"""
LEGEND = (
    "Metrics are in percent, on classes never seen in training; brackets hold 95 % "
    "intervals; differences are in points; <i>n</i> is the number of replicates."
)


def write_index(folder: Path, profile: str, overrides: dict[str, Any]) -> Path:
    """Write ``folder/index.html`` over all chapters that have results, and return its path.

    Args:
        folder: the results folder of the profile.
        profile: name of the profile.
        overrides: parameters that were set against the profile, shown in the title.
    """
    found = (*folder.glob("*/runs.csv"), *folder.glob("*/chapter.ipynb"))  # some train nothing
    chapters = sorted({path.parent for path in found})
    links = [
        {
            "chapter": f"<a href='#{chapter.name}'>{chapter.name}</a>",
            **overview(chapter),
            "notebook": f"<a href='{chapter.name}/chapter.ipynb'>chapter.ipynb</a>",
        }
        for chapter in chapters
    ]
    table = pd.DataFrame(links)
    changes = "".join(f", {name} = {html.escape(str(value))}" for name, value in overrides.items())
    parts = [
        f"<h1>Results of the <code>{html.escape(profile)}</code> profile{changes}</h1>",
        table.to_html(index=False, escape=False, border=0) if chapters else "<p>No results.</p>",
        f"<p>{LEGEND}</p>",
    ]
    for chapter in chapters:
        parts.append(f"<h2 id='{chapter.name}'>{chapter.name}</h2>")
        for title, shown in sections(chapter):
            parts += [f"<h3>{title}</h3>", shown] if title else [shown]
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>Results: {html.escape(profile)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    with write_atomically(folder / "index.html") as path:
        path.write_text(page)
    return folder / "index.html"


def overview(chapter: Path) -> dict[str, object]:
    """Return the line of one chapter, a folder of results, in a table of all."""
    executed, about = chapter / "chapter.ipynb", {}
    made = (
        json.loads(executed.read_text())["metadata"].get("dmlkit", {}) if executed.exists() else {}
    )
    if (chapter / "runs.csv").exists():
        rows = pd.read_csv(chapter / "runs.csv")
        about = {
            "data": ", ".join(sorted(rows["dataset"].unique())),
            "methods": rows["method"].nunique(),
            "replicates": rows["seed"].nunique(),
            "training, s": f"{rows['seconds'].sum():.0f}",
            "commit": ", ".join(sorted(rows["commit"].astype(str).unique())),
        }
    lines = ("data", "methods", "replicates", "training, s", "last execution, s", "commit")
    about["last execution, s"] = made.get("seconds", "not finished")
    return {line: about.get(line, "–") for line in lines}


def sections(chapter: Path) -> Iterator[tuple[str, str]]:
    """Yield title and HTML of each table, of the claims and of each figure, which has no title."""
    for table in sorted((chapter / "tables").glob("[!.]*.csv")):  # none that a kill left half
        frame = pd.read_csv(table, dtype=str, keep_default_na=False)
        shown = frame.to_html(index=False, border=0)
        beside = table.with_suffix(".md")
        lines = beside.read_text().splitlines() if beside.exists() else []
        notes = " ".join(line.replace("**", "") for line in lines if not line.startswith("|"))
        if notes.strip():
            shown += f"<p>{html.escape(notes.strip())}</p>"
        yield table.stem.replace("_", " "), shown
    if (chapter / "claims.csv").exists():
        found = pd.read_csv(chapter / "claims.csv", keep_default_na=False)
        judged = show_claims(found).reset_index()
        yield "claims", judged.to_html(index=False, border=0)
    kept = (path for path in chapter.glob("figures/[!.]*") if path.suffix in (".png", ".jpg"))
    for figure in sorted(kept):
        name = figure.stem.replace("_", " ")
        source = figure.relative_to(chapter.parent).as_posix()
        caption = f"<figcaption>{name}</figcaption>"  # instead of a title
        yield "", f"<figure><img src='{source}' alt='{name}'>{caption}</figure>"


def ledger(folder: Path, profile: str) -> Iterator[tuple[str, str]]:
    """Yield chapter and HTML of its claims, beside the verdicts of all profiles.

    Args:
        folder: the results folder of ``profile``, which need not be the committed one.
        profile: name of the profile.
    """
    others = (path for path in sorted((PROJECT_ROOT / "results").iterdir()) if path.is_dir())
    judged = claims.ledger(
        [*(path for path in others if path.name not in (profile, folder.name)), folder]
    )
    verdicts = show_ledger(judged).drop(columns=ABOUT_CLAIMS) if len(judged) else pd.DataFrame()
    listed = pd.read_csv(BOOK / "claims.csv", dtype=str, keep_default_na=False)
    listed["metric"] = listed["metric"].map(metric_title)
    for chapter, of_chapter in listed.groupby("chapter"):
        table = of_chapter.set_index("claim")[ABOUT_CLAIMS].join(verdicts).fillna("")
        shown = table.loc[:, (table != "").any()].reset_index()
        yield str(chapter), shown.to_html(index=False, border=0)
