"""The index page of a results folder: what was run, its tables, claims and figures."""

import html
import json
from pathlib import Path
from typing import Any

import pandas as pd

from dmlkit.paths import write_atomically
from dmlkit.tables import show_claims

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: .85rem; margin: 1rem 0; display: block;
        overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8886; text-align: left;
         vertical-align: top; }
img { max-width: 100%; background: white; }
:root { color-scheme: light dark; }
"""


def write_index(folder: Path, profile: str, overrides: dict[str, Any]) -> Path:
    """Write ``folder/index.html`` over all chapters that have results, and return its path.

    Args:
        folder: the results folder of the profile.
        profile: name of the profile.
        overrides: parameters that were set against the profile, shown in the title.
    """
    chapters = sorted(path.parent for path in folder.glob("*/runs.csv"))
    overview = pd.DataFrame([_overview(chapter) for chapter in chapters])
    changes = "".join(f", {name} = {html.escape(str(value))}" for name, value in overrides.items())
    parts = [
        f"<h1>Results of the <code>{html.escape(profile)}</code> profile{changes}</h1>",
        overview.to_html(index=False, escape=False, border=0) if chapters else "<p>No results.</p>",
        "<p>Metrics are in percent, on classes never seen in training; brackets hold 95 % "
        "intervals; differences are in points; <i>n</i> is the number of replicates.</p>",
        *(_section(chapter) for chapter in chapters),
    ]
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


def _overview(chapter: Path) -> dict[str, object]:
    """Return the line of one chapter in the page's first table."""
    rows = pd.read_csv(chapter / "runs.csv")
    executed = chapter / "chapter.ipynb"
    made = (
        json.loads(executed.read_text())["metadata"].get("dmlkit", {}) if executed.exists() else {}
    )
    return {
        "chapter": f"<a href='#{chapter.name}'>{chapter.name}</a>",
        "data": ", ".join(sorted(rows["dataset"].unique())),
        "methods": rows["method"].nunique(),
        "replicates": rows["seed"].nunique(),
        "training, s": f"{rows['seconds'].sum():.0f}",
        "last execution, s": made.get("seconds", "not finished"),
        "commit": ", ".join(sorted(rows["commit"].astype(str).unique())),
        "notebook": f"<a href='{chapter.name}/chapter.ipynb'>chapter.ipynb</a>",
    }


def _section(chapter: Path) -> str:
    """Return tables, claims and figures of one chapter."""
    parts = [f"<h2 id='{chapter.name}'>{chapter.name}</h2>"]
    for table in sorted((chapter / "tables").glob("*.csv")):
        frame = pd.read_csv(table, dtype=str, keep_default_na=False)
        parts += [f"<h3>{table.stem.replace('_', ' ')}</h3>", frame.to_html(index=False, border=0)]
    claims = chapter / "claims.csv"
    if claims.exists():
        judged = show_claims(pd.read_csv(claims, keep_default_na=False)).reset_index()
        parts += ["<h3>claims</h3>", judged.to_html(index=False, border=0)]
    kept = (path for path in chapter.glob("figures/*") if path.suffix in (".png", ".jpg"))
    for figure in sorted(kept):
        name = figure.stem.replace("_", " ")
        source = figure.relative_to(chapter.parent).as_posix()
        parts.append(
            f"<figure><img src='{source}' alt='{name}'><figcaption>{name}</figcaption></figure>"
        )
    return "\n".join(parts)
